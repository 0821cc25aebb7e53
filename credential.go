package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// standbyRest is how long a node that may not write leaves its readers in
// peace before it looks again whether it may.
const standbyRest = 10 * time.Second

// errClosed answers who asks while the backend is being shut down.
var errClosed = errors.New("the engine is shutting down")

// credential is the life of one named credential: what readers see, and the
// jobs that change it. Once made, it stays for the life of the backend, so
// that a name never has two slots. It is safe for concurrent use.
type credential struct {
	b    *backend
	name string

	snap  atomic.Pointer[snapshot] // what readers are answered from; nil: not loaded
	epoch atomic.Uint64            // counts invalidations: a snapshot of another epoch is stale
	rest  atomic.Int64             // Unix nanoseconds until which a read starts no refresh
	blind atomic.Int64             // Unix nanoseconds until which storage, which failed, is left alone

	counts atomic.Pointer[counts] // for the metrics; new ones once the credential is deleted

	// slot is held by the one job that may ask Autopay or write to storage
	// for this credential. Readers never take it.
	slot     chan struct{}
	unproved *unprovedError // the last proof that failed; guarded by slot

	mu     sync.Mutex  // guards flight and timer, never across I/O
	flight *flight     // the refresh under way, if any
	timer  *time.Timer // starts the next refresh
}

// flight is one refresh that any number of readers wait for.
type flight struct {
	done   chan struct{} // closed at the end
	err    error         // set before done is closed
	urgent chan struct{} // closed once a reader waits
	hurry  sync.Once
}

func newCredential(b *backend, name string) *credential {
	c := &credential{b: b, name: name, slot: make(chan struct{}, 1)}
	c.counts.Store(new(counts))
	return c
}

// current returns the snapshot, read from storage where there is none or an
// invalidation has made it stale. Where storage can't be read, a live token
// goes on being served.
func (c *credential) current(ctx context.Context) (*snapshot, error) {
	for {
		old, epoch := c.snap.Load(), c.epoch.Load()
		if old != nil && (old.epoch == epoch || old.live(c.b.now()) && c.b.now().UnixNano() < c.blind.Load()) {
			return old, nil
		}
		s, err := c.b.read(ctx, c.name, old)
		if err != nil {
			if old == nil || !old.live(c.b.now()) {
				return nil, err
			}
			c.blind.Store(c.b.now().Add(time.Second).UnixNano())
			c.b.log(c.name).Warn("storage can't be read, serving the token in memory", "error", err)
			return old, nil
		}
		s.epoch = epoch
		if c.snap.CompareAndSwap(old, s) {
			c.arm()
			return s, nil
		}
	}
}

// exclusively runs a job that may ask Autopay and write to storage. It waits
// for its turn and then for its end; a caller whose ctx ends leaves, but a job
// once begun goes on under the backend's own context: a request to Autopay is
// never wasted because its first reader left.
func (c *credential) exclusively(ctx context.Context, job func(context.Context) error) error {
	select {
	case c.slot <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	done := make(chan error, 1)
	started := c.b.spawn(func(ctx context.Context) {
		defer func() { <-c.slot }()
		done <- job(ctx)
	})
	if !started {
		<-c.slot
		return errClosed
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refresh starts a refresh, or joins the one under way (rule 2). It returns at once.
func (c *credential) refresh() *flight {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight != nil {
		return c.flight
	}
	f := &flight{done: make(chan struct{}), urgent: make(chan struct{})}
	if c.b.spawn(func(ctx context.Context) { c.fly(ctx, f) }) {
		c.flight = f
	} else {
		f.err = errClosed
		close(f.done)
	}
	return f
}

// fly runs a refresh. A few run at a time; one that a reader waits for jumps
// the queue.
func (c *credential) fly(ctx context.Context, f *flight) {
	select {
	case c.b.background <- struct{}{}:
		defer func() { <-c.b.background }()
	case <-f.urgent:
	case <-ctx.Done():
	}
	f.err = c.exclusively(ctx, func(ctx context.Context) error { return c.renew(ctx, false) })
	if errors.Is(f.err, logical.ErrReadOnly) {
		c.rest.Store(c.b.now().Add(standbyRest).UnixNano())
	}
	c.mu.Lock()
	c.flight = nil
	c.mu.Unlock()
	close(f.done)
}

// wait waits for the flight's end, or ctx's.
func (f *flight) wait(ctx context.Context) error {
	f.hurry.Do(func() { close(f.urgent) })
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// arm sets the timer to the next refresh: when one is due, unless none was
// asked for yet, which is left to the tick and to readers.
func (c *credential) arm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.snap.Load()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if s.config == nil || s.pending() || c.b.closed() {
		return
	}
	c.timer = time.AfterFunc(s.dueAt().Sub(c.b.now()), func() { c.refresh() })
}

// disarm ends the timer, for good once the backend is closed.
func (c *credential) disarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}
