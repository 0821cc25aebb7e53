package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// readOnlyPause is how long reads start no refresh on a node that has found
	// that it may not write.
	readOnlyPause = 10 * time.Second
	// storagePause is how long storage that can't be read is left alone while a
	// live token is in memory.
	storagePause = time.Second
)

// errStopped answers those who ask while the mount is being stopped.
var errStopped = errors.New("the engine is shutting down")

// credential is one named credential: what readers see of it, and who may
// change it. Once made, it stays until the mount is stopped, so that a name
// never has two slots. It is safe for concurrent use.
type credential struct {
	node *node
	name string
	// renew is the job of a refresh (renewal.go). The caller holds the slot.
	renew func(context.Context) error

	snap atomic.Pointer[snapshot] // what readers are answered from; nil: not loaded
	// storageVersion counts the times that storage may have changed without this
	// snapshot. A snapshot of another version is stale.
	storageVersion atomic.Uint64
	noRefreshUntil atomic.Int64 // Unix nanoseconds: reads start no refresh before
	noStorageUntil atomic.Int64 // Unix nanoseconds: do not read storage before, because it has just failed

	counters atomic.Pointer[counters] // new ones once the credential is deleted

	// slot is held by the one job that may ask Autopay or write to storage for
	// this credential. Readers never take it.
	slot       chan struct{}
	unverified *unverifiedError // the last config write that Autopay did not confirm; guarded by slot

	mu     sync.Mutex  // guards flight and timer, never across I/O
	flight *flight     // the refresh under way, if any
	timer  *time.Timer // starts the next refresh
}

// unverifiedError is a config write that Autopay did not confirm. Nothing was
// changed.
type unverifiedError struct {
	*exchangeError
	settings [sha256.Size]byte // of the token request that was tried
	at       time.Time
}

// flight is one refresh that any number of readers wait for.
type flight struct {
	done     chan struct{} // closed at the end
	err      error         // set before done is closed
	urgent   chan struct{} // closed as soon as a reader waits
	urgently sync.Once     // closes urgent
}

func (c *credential) log() hclog.Logger { return c.node.log(c.name) }

// stale marks what is in memory to be read from storage again.
func (c *credential) stale() { c.storageVersion.Add(1) }

// current returns the snapshot. It is read from storage first if there is none,
// or if storage may have changed. While storage can't be read, a live token is
// still served.
func (c *credential) current(ctx context.Context) (*snapshot, error) {
	for {
		// The version is taken first: a change that comes while storage is read
		// makes what was read stale at once.
		version, old, now := c.storageVersion.Load(), c.snap.Load(), c.node.now()
		if old != nil && (old.storageVersion == version || old.live(now) && now.UnixNano() < c.noStorageUntil.Load()) {
			return old, nil
		}
		s, err := c.node.load(ctx, c.name, old)
		if err != nil {
			if old == nil || !old.live(c.node.now()) {
				return nil, err
			}
			c.noStorageUntil.Store(c.node.now().Add(storagePause).UnixNano())
			c.log().Warn("storage can't be read, serving the token in memory", "error", err)
			return old, nil
		}
		s.storageVersion = version
		if c.replace(old, s) {
			return s, nil
		}
	}
}

// replace puts a snapshot in the place of old, unless another one is there by
// now, and sets the timer to it.
func (c *credential) replace(old, s *snapshot) bool {
	if !c.snap.CompareAndSwap(old, s) {
		return false
	}
	c.arm()
	return true
}

// publish puts a snapshot that a job made from old in its place, and reports
// what has changed to the log and to Vault's event system. It keeps old's
// version: if storage has changed since old was read, the new one is stale too.
// The caller holds the slot.
func (c *credential) publish(old, s *snapshot) {
	now := c.node.now()
	s.storageVersion, s.loggedState = old.storageVersion, s.state(now)
	c.snap.Store(s)
	c.arm()
	if s.config == nil {
		return
	}
	c.node.sendChange(c.name, old, s)
	log, last := c.log(), old.entry.Failure
	switch f := s.entry.Failure; {
	case f != nil && last != nil && last.Kind == f.Kind && old.loggedState == s.loggedState:
		log.Debug("still no new token", "state", s.loggedState, "error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	case f != nil && s.loggedState == stateDegraded:
		log.Warn("no new token, serving the one in hand", "error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	case f != nil:
		log.Error("no token to serve", "error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	case s.entry.AccessToken != old.entry.AccessToken && s.live(now):
		log.Info("new token", "expire_time", formatTime(s.entry.ExpireTime), "next_rotation", formatTime(s.dueAt()))
	}
}

// exclusively runs a job that may ask Autopay and write to storage. It waits for
// its turn and then for the job's end. A caller whose ctx ends leaves, but a job
// once begun goes on under the mount's own context: an operator or reader who
// leaves never wastes a request to Autopay.
func (c *credential) exclusively(ctx context.Context, job func(context.Context) error) error {
	select {
	case c.slot <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Vault's answer carries the index of its last write (X-Vault-Index), which
	// storage notes in the context. The job notes it in a state of its own,
	// because a caller who has left must not share it.
	callers, written := logical.IndexStateFromContext(ctx), new(logical.WALState)
	if callers != nil {
		*written = *callers
	}
	done := make(chan error, 1)
	started := c.node.spawn(func(ctx context.Context) {
		defer func() { <-c.slot }()
		done <- job(logical.IndexStateContext(ctx, written))
	})
	if !started {
		<-c.slot
		return errStopped
	}
	select {
	case err := <-done:
		if callers != nil {
			*callers = *written
		}
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
	if c.node.spawn(func(ctx context.Context) { c.runRefresh(ctx, f) }) {
		c.flight = f
	} else {
		f.err = errStopped
		close(f.done)
	}
	return f
}

// runRefresh waits for a place, renews the token and ends the flight.
func (c *credential) runRefresh(ctx context.Context, f *flight) {
	if place := c.takePlace(ctx, f); place != nil {
		defer func() { <-place }()
	}
	f.err = c.exclusively(ctx, c.renew)
	if errors.Is(f.err, logical.ErrReadOnly) {
		c.noRefreshUntil.Store(c.node.now().Add(readOnlyPause).UnixNano())
	}
	c.mu.Lock()
	c.flight = nil
	c.mu.Unlock()
	close(f.done)
}

// takePlace waits for one of the places that limit how many refreshes run at a
// time, and returns the channel to give it back to; nil if ctx ends first. A
// refresh that a reader waits for may take either kind of place.
func (c *credential) takePlace(ctx context.Context, f *flight) chan struct{} {
	background := c.node.firstAttempts
	if s := c.snap.Load(); s != nil && s.entry.Failure != nil {
		background = c.node.retries
	}
	select {
	case background <- struct{}{}:
		return background
	case <-ctx.Done():
		return nil
	case <-f.urgent:
	}
	select {
	case c.node.urgent <- struct{}{}:
		return c.node.urgent
	case background <- struct{}{}:
		return background
	case <-ctx.Done():
		return nil
	}
}

// wait waits for the flight's end, or for the end of ctx.
func (f *flight) wait(ctx context.Context) error {
	f.urgently.Do(func() { close(f.urgent) })
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// arm sets the timer to the next refresh. There is none for a credential whose
// first token has not been requested yet: readers and Vault's periodic call do that.
func (c *credential) arm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopTimer()
	s := c.snap.Load()
	if s.config == nil || s.pending() || c.node.stopped() {
		return
	}
	c.timer = time.AfterFunc(s.wait(c.node.now()), func() { c.refresh() })
}

// disarm stops the timer, for good once the mount is stopped.
func (c *credential) disarm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopTimer()
}

func (c *credential) stopTimer() {
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}
