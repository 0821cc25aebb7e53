package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
)

// # Concurrency
//
// Many readers, one writer. Four things keep them apart:
//
//   - The snapshot is an immutable value behind an atomic pointer. A read loads the
//     pointer and compares times; it takes no lock and can't see a change half done.
//     The credential counts the changes to storage that it has not seen, and each
//     snapshot holds the count at which storage was read. A snapshot with another
//     count is stale and is read again before it is used. The count is taken before
//     storage is read, so a change that comes meanwhile makes the result stale at
//     once: it can't be lost between a read of storage and its publication.
//   - The lock belongs to the one job that may ask Autopay or write to storage:
//     refresh, rotate, config write or delete (jobs.go). It keeps two requests from
//     being in flight (rule 2), and keeps a delete from overtaking a refresh whose
//     result would bring the credential back. It is a channel, so that whoever waits
//     for it can leave. Readers never take it. A job runs under the mount's context:
//     a caller who leaves cancels nothing, and no request to Autopay is wasted.
//   - The in-flight refresh is what any number of readers wait for, each until its own
//     deadline. It is over while its job still holds the lock. So a reader who finds
//     new settings, which only the next job can have stored, never joins a refresh of
//     the old ones.
//   - The timer starts the next refresh at the second it is due. It is set whenever a
//     snapshot is published, and once more when a refresh ends: a timer that went off
//     meanwhile has joined that refresh, and would be lost.
//
// Vault's periodic call starts what the timer missed: a clock that was set, or a
// refresh that could not even read storage.

const (
	// failurePause is how long reads of a live token leave alone what has just failed:
	// storage, or a refresh on a node that may not write.
	failurePause = 10 * time.Second
	// storageTimeout is how long reads of a live token wait for storage.
	storageTimeout = time.Second
)

// errStopped is returned to those who wait while the mount is being stopped.
var errStopped = errors.New("the engine is shutting down")

// credential is one named credential: what readers see of it, and who may change
// it. Once made, it stays until the mount is stopped, so that a name never has two
// locks. It is safe for concurrent use.
type credential struct {
	env  *environment
	name string

	snap    atomic.Pointer[snapshot] // what readers are answered from; nil: not loaded
	changes atomic.Uint64            // changes to storage that may not be in snap; see stale

	noRefreshUntil atomic.Int64 // environment.uptime: reads do not start a refresh before
	noStorageUntil atomic.Int64 // environment.uptime: reads of a live token do not read storage before

	counters atomic.Pointer[counters] // new ones once the credential is deleted

	lock       chan struct{}    // holds an element while a job runs
	unverified *unverifiedError // the last config write that Autopay did not confirm; guarded by lock

	mu       sync.Mutex       // guards inFlight and timer, never across I/O
	inFlight *inFlightRefresh // nil: none
	timer    *time.Timer      // starts the next refresh
}

// newCredential returns the credential of a name, with nothing loaded yet.
func newCredential(env *environment, name string) *credential {
	c := &credential{env: env, name: name, lock: make(chan struct{}, 1)}
	c.counters.Store(new(counters))
	return c
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
		text += "; to store it without contacting Autopay, set verify=false"
	}
	return text
}

// inFlightRefresh is one refresh that any number of readers wait for.
type inFlightRefresh struct {
	done chan struct{} // closed at the end
	err  error         // set before done is closed
}

func (c *credential) log() hclog.Logger { return c.env.log(c.name) }

// stale marks what is in memory to be read from storage again: after a change by another
// node, and after a write that failed, because it may have been done all the same.
func (c *credential) stale() { c.changes.Add(1) }

// current returns the snapshot. It is read from storage first if there is none,
// or if storage may have changed.
func (c *credential) current(ctx context.Context) (*snapshot, error) {
	for {
		changes, old := c.changes.Load(), c.snap.Load() // in this order; see above
		if old != nil && old.changes == changes {
			return old, nil
		}
		s, err := c.env.load(ctx, c.name, old)
		if err != nil {
			return nil, err
		}
		s.changes = changes
		if c.snap.CompareAndSwap(old, s) { // or another snapshot has been published meanwhile
			c.arm()
			return s, nil
		}
	}
}

// forReader is current for those who change nothing: a live token in memory is served
// while storage can't be read.
func (c *credential) forReader(ctx context.Context) (*snapshot, error) {
	old := c.snap.Load()
	if old == nil || !old.live(c.env.now()) {
		return c.current(ctx)
	}
	if c.paused(&c.noStorageUntil) {
		return old, nil
	}
	bounded, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	s, err := c.current(bounded)
	if err != nil && ctx.Err() == nil {
		c.pause(&c.noStorageUntil)
		c.log().Warn("storage can't be read, serving the token from memory", "error", err)
		return old, nil
	}
	return s, err
}

// pause starts one of the two pauses, and paused reports whether it lasts. Both count by
// the mount's uptime: a wall clock that is set back would stretch them.
func (c *credential) pause(until *atomic.Int64) {
	until.Store(int64(c.env.uptime() + failurePause))
}

func (c *credential) paused(until *atomic.Int64) bool {
	return int64(c.env.uptime()) < until.Load()
}

// publish replaces old by a snapshot of settings and an entry that a job derived from
// it, and reports what has changed to the log and to Vault's event system. It keeps
// old's count of changes: if storage has changed since old was read, the new one is
// stale too. The caller holds the lock.
func (c *credential) publish(old *snapshot, config *configEntry, entry tokenEntry, unsaved bool) {
	now := c.env.now()
	s := newSnapshot(config, entry, now)
	s.changes, s.unsaved, s.loggedState = old.changes, unsaved, old.loggedState
	last, f := old.entry.Failure, s.entry.Failure
	failed := f != nil && (last == nil || !f.Time.Equal(last.Time))
	replaced := s.entry.AccessToken != old.entry.AccessToken && s.entry.AccessToken != ""
	if failed || replaced {
		s.loggedState = s.state(now)
	}
	c.snap.Store(s)
	c.arm()
	log := c.log()
	if failed {
		log = log.With("error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	}
	switch {
	case failed && last != nil && last.Kind == f.Kind && old.loggedState == s.loggedState:
		log.Debug("the token still could not be replaced", "state", s.loggedState)
	case failed && s.loggedState == stateDegraded:
		log.Warn("the token could not be replaced, serving the current one")
	case failed:
		log.Error("no token to serve")
	case replaced:
		log.Info("new token", "expire_time", formatTime(s.entry.ExpireTime), "next_rotation", formatTime(s.dueAt()))
		c.env.send("autopay/rotate", tokenPrefix, true, c.name)
	}
	switch {
	case failed && f.Kind == refused:
		c.env.send("autopay/credential-refused", tokenPrefix, false, c.name)
	case failed:
		c.env.send("autopay/rotate-fail", tokenPrefix, false, c.name)
	}
}

// exclusively runs a job under the credential's lock. It waits for its turn and then
// for the job's end. If ctx ends, the caller returns, but a job that has started goes
// on.
func (c *credential) exclusively(ctx context.Context, job func(context.Context) error) error {
	select {
	case c.lock <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Vault's answer carries the index of its last write (X-Vault-Index), which storage
	// records in the context. The job records it in a separate state, because it must
	// not write to that of a caller who has left.
	callers, written := logical.IndexStateFromContext(ctx), new(logical.WALState)
	if callers != nil {
		*written = *callers
	}
	done := make(chan error, 1)
	started := c.env.spawn(func(ctx context.Context) {
		defer func() { <-c.lock }()
		done <- job(logical.IndexStateContext(ctx, written))
	})
	if !started {
		<-c.lock
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

// refresh starts a refresh, or joins the one in flight (rule 2). It returns at once.
func (c *credential) refresh() *inFlightRefresh {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight != nil {
		return c.inFlight
	}
	r := &inFlightRefresh{done: make(chan struct{})}
	if c.env.spawn(func(ctx context.Context) { c.runRefresh(ctx, r) }) {
		c.inFlight = r
	} else {
		r.err = errStopped
		close(r.done)
	}
	return r
}

// refreshIfDue starts the refresh of a live token that is due.
func (c *credential) refreshIfDue(s *snapshot, now time.Time) {
	if s.due(now) && !c.paused(&c.noRefreshUntil) {
		c.refresh()
	}
}

// runRefresh waits until fewer than maxRefreshes run, obtains a token and ends r.
func (c *credential) runRefresh(ctx context.Context, r *inFlightRefresh) {
	select {
	case c.env.refreshes <- struct{}{}:
		defer func() { <-c.env.refreshes }()
	case <-ctx.Done():
	}
	r.err = c.exclusively(ctx, func(ctx context.Context) error {
		defer c.over(r)
		return c.renew(ctx)
	})
	c.over(r) // also if the job did not start
	var failed *failedAttempt
	if r.err == nil || errors.As(r.err, &failed) {
		c.arm()
	} else { // this node may not write, or storage can't be read
		c.pause(&c.noRefreshUntil)
	}
	close(r.done)
}

// over makes way for the next refresh.
func (c *credential) over(r *inFlightRefresh) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight == r {
		c.inFlight = nil
	}
}

// wait waits for the end of the refresh, or of ctx.
func (r *inFlightRefresh) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
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
	if s := c.snap.Load(); s != nil && s.config != nil && !s.pending() && !c.env.stopped() {
		c.timer = time.AfterFunc(s.wait(c.env.now()), func() { c.refresh() })
	}
}

// unusable is why a snapshot of the credential can't be used, as lookup says it;
// nil if it can.
func (c *credential) unusable(s *snapshot) error {
	switch {
	case s.damage != nil:
		return s.damage
	case s.config == nil:
		return &notConfiguredError{c.name}
	}
	return nil
}

// Outcomes of a token request.
const (
	requestSuccess = iota
	requestRefused
	requestError
	requestLimited // the ledger allowed none, so it was not sent
)

// Outcomes of a read.
const (
	readOK       = iota
	readDegraded // a live token that can't be replaced
	readError
)

// Values of the outcome label.
var (
	requestOutcomes = [...]string{
		requestSuccess: "success", requestRefused: "refused", requestError: "error", requestLimited: "limited",
	}
	readOutcomes = [...]string{readOK: "ok", readDegraded: "degraded", readError: "error"}
)

// durationBuckets are the upper bounds of the histogram, in seconds. A request_timeout
// is at most 60 s.
var durationBuckets = [...]float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// counters count what happened to one credential since the process started. They
// belong to the credential, so they end with it. They are safe for concurrent use.
// Durations are counted here because a histogram of client_golang's own takes 1.3 KB,
// half as much as all the rest of a credential.
type counters struct {
	requests  [len(requestOutcomes)]atomic.Uint64
	reads     [len(readOutcomes)]atomic.Uint64
	exchanges [len(durationBuckets) + 1]atomic.Uint64 // by the first bucket that has room for their duration
	duration  atomic.Int64                            // of all exchanges together, a time.Duration
}

// countExchange counts one exchange with Autopay that ended with x (nil: a token).
func (n *counters) countExchange(x *exchangeError, took time.Duration) {
	outcome := requestSuccess
	switch {
	case x != nil && x.kind == refusal:
		outcome = requestRefused
	case x != nil:
		outcome = requestError
	}
	n.requests[outcome].Add(1)
	bucket, _ := slices.BinarySearch(durationBuckets[:], took.Seconds())
	n.exchanges[bucket].Add(1)
	n.duration.Add(int64(took))
}
