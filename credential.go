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
	// failurePause is how long reads of a live token leave alone what has just failed:
	// storage, or a refresh on a node that may not write.
	failurePause = 10 * time.Second
	// storageTimeout is how long reads of a live token wait for storage.
	storageTimeout = time.Second
)

// errStopped answers those who ask while the mount is being stopped.
var errStopped = errors.New("the engine is shutting down")

// credential is one named credential: what readers see of it, and who may
// change it. Once made, it stays until the mount is stopped, so that a name
// never has two slots. It is safe for concurrent use.
type credential struct {
	node *node
	name string
	snap atomic.Pointer[snapshot] // what readers are answered from; nil: not loaded
	// storageVersion counts the times that storage may have changed without this
	// snapshot. A snapshot of another version is stale.
	storageVersion atomic.Uint64
	noRefreshUntil atomic.Int64 // node.uptime: reads start no refresh before
	noStorageUntil atomic.Int64 // node.uptime: reads of a live token do not read storage before

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
	until    time.Time         // the same write is answered with this error
}

// Error implements error. Storing without verification helps in an outage alone:
// everything else would fail again at the first read, and may cost a token each time.
func (e *unverifiedError) Error() string {
	text := e.text + "; nothing was changed; the same write may be tried again at " + formatTime(e.until)
	if e.kind == outage || e.kind == busy {
		text += "; to store it without asking Autopay, set verify=false"
	}
	return text
}

// flight is one refresh that any number of readers wait for.
type flight struct {
	done chan struct{} // closed at the end
	err  error         // set before done is closed
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
		if old != nil && (old.storageVersion == version || old.live(now) && c.paused(&c.noStorageUntil)) {
			return old, nil
		}
		s, err := c.load(ctx, old)
		if err != nil {
			if old == nil || !old.live(c.node.now()) {
				return nil, err
			}
			c.pause(&c.noStorageUntil)
			c.log().Warn("storage can't be read, serving the token in memory", "error", err)
			return old, nil
		}
		s.storageVersion = version
		if c.replace(old, s) {
			return s, nil
		}
	}
}

// load is node.load, but waits no longer than storageTimeout while old is live.
func (c *credential) load(ctx context.Context, old *snapshot) (*snapshot, error) {
	if old != nil && old.live(c.node.now()) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, storageTimeout)
		defer cancel()
	}
	return c.node.load(ctx, c.name, old)
}

func (c *credential) pause(until *atomic.Int64) {
	until.Store(int64(c.node.uptime() + failurePause))
}

func (c *credential) paused(until *atomic.Int64) bool {
	return int64(c.node.uptime()) < until.Load()
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
	f := &flight{done: make(chan struct{})}
	if c.node.spawn(func(ctx context.Context) { c.runRefresh(ctx, f) }) {
		c.flight = f
	} else {
		f.err = errStopped
		close(f.done)
	}
	return f
}

// refreshIfDue starts the refresh of a live token that is due.
func (c *credential) refreshIfDue(s *snapshot, now time.Time) {
	if s.due(now) && !c.paused(&c.noRefreshUntil) {
		c.refresh()
	}
}

// runRefresh waits until fewer than maxRefreshes run, renews the token and ends the
// flight.
func (c *credential) runRefresh(ctx context.Context, f *flight) {
	select {
	case c.node.refreshes <- struct{}{}:
		defer func() { <-c.node.refreshes }()
	case <-ctx.Done():
	}
	f.err = c.exclusively(ctx, func(ctx context.Context) error {
		// Over while the slot is held: whoever finds other settings from then on
		// starts a refresh of their own, and does not join this one.
		defer c.over(f)
		return c.renewDue(ctx)
	})
	c.over(f)
	var failed *failedAttempt
	switch {
	case errors.Is(f.err, logical.ErrReadOnly):
		c.pause(&c.noRefreshUntil)
	case f.err == nil, errors.As(f.err, &failed):
		c.arm() // a timer that went off in the meantime has joined this refresh
	}
	close(f.done)
}

// over makes room for the next refresh.
func (c *credential) over(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight == f {
		c.flight = nil
	}
}

// wait waits for the flight's end, or for the end of ctx.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// arm sets the timer to the next refresh. There is none once the mount is stopped,
// and for a credential whose first token has not been requested yet: readers and
// Vault's periodic call do that.
func (c *credential) arm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if s := c.snap.Load(); s != nil && s.config != nil && !s.pending() && !c.node.stopped() {
		c.timer = time.AfterFunc(s.wait(c.node.now()), func() { c.refresh() })
	}
}
