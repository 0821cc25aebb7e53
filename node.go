package main

import (
	"context"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

const (
	// maxRefreshes is how many refreshes of a mount run at a time.
	maxRefreshes = 32
	// cleanTimeout is how long stop waits. Vault holds a lock for every mount in the
	// process while it calls Clean.
	cleanTimeout = time.Second
)

// node is what a credential needs of its mount: storage, client, clock, log and
// jobs, and whether it may write. It is safe for concurrent use.
type node struct {
	storage logical.Storage
	system  logical.SystemView
	events  logical.EventSender // nil: this Vault has no events
	logger  hclog.Logger
	client  *client
	now     func() time.Time       // with Go's monotonic reading; see before
	uuid    string                 // names the mount until path is known
	path    atomic.Pointer[string] // of the mount; requests tell it

	begun     time.Time
	refreshes chan struct{} // one element per refresh under way; who waits is served in turn

	mu   sync.Mutex      // guards the start of jobs against stop
	life context.Context //nolint:containedctx // the mount's own life, which stop ends
	end  context.CancelFunc
	jobs sync.WaitGroup
}

// options are what tests replace. The zero value means production.
type options struct {
	now       func() time.Time
	transport http.RoundTripper
}

func newNode(ctx context.Context, conf *logical.BackendConfig, opts options) *node {
	n := &node{
		storage:   conf.StorageView,
		system:    conf.System,
		events:    conf.EventsSender,
		logger:    conf.Logger,
		now:       opts.now,
		uuid:      conf.BackendUUID,
		refreshes: make(chan struct{}, maxRefreshes),
	}
	if n.now == nil {
		n.now = time.Now //nolint:forbidigo // the one place that names the clock
	}
	if n.logger == nil {
		n.logger = hclog.NewNullLogger()
	}
	n.begun = n.now()
	n.client = &client{now: n.now, transport: opts.transport}
	// Not ctx itself: the mount outlives the call that made it.
	n.life, n.end = context.WithCancel(context.WithoutCancel(ctx))
	return n
}

// spawn runs a job that stop ends. It reports whether the job could start.
func (n *node) spawn(job func(context.Context)) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped() {
		return false
	}
	n.jobs.Go(func() { job(n.life) })
	return true
}

// stop cancels all jobs and waits for them, but no longer than cleanTimeout. No
// job starts after it. It may be called twice.
func (n *node) stop() {
	n.mu.Lock()
	n.end()
	n.mu.Unlock()
	done := make(chan struct{})
	go func() {
		n.jobs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(cleanTimeout):
	}
}

// uptime is how long the mount has been there. No step of the wall clock changes it.
func (n *node) uptime() time.Duration { return n.now().Sub(n.begun) }

func (n *node) stopped() bool { return n.life.Err() != nil }

// mayWrite reports whether this node may write its own storage, and so may ask
// Autopay (rule 10). The active node of a performance secondary may, because
// tokens are local to a cluster. A tainted mount is being disabled or moved.
func (n *node) mayWrite() bool {
	state := n.system.ReplicationState()
	return !state.HasState(consts.ReplicationPerformanceStandby) &&
		!state.HasState(consts.ReplicationDRSecondary) && !n.system.Tainted()
}

// log returns the logger for one credential. Its lines name the mount, because
// one process serves several mounts and shares one log.
func (n *node) log(name string) hclog.Logger {
	return n.logger.With("mount", n.mountPath(), "name", name)
}

func (n *node) mountPath() string {
	if path := n.path.Load(); path != nil {
		return *path
	}
	return n.uuid
}

// before reports whether both of Go's clocks say that now is before t. The wall
// clock can be set, and the monotonic clock stops while the machine sleeps. A
// token is live only before its end by both clocks, so neither a step nor sleep
// makes its life longer (rule 4). A refresh is due as soon as either clock says so.
//
// t has a monotonic reading if it was derived from a reading of the clock, or
// comes from anchored.
func before(now, t time.Time) bool {
	return now.Before(t) && now.Round(0).Before(t.Round(0)) // Round(0) strips the monotonic reading
}

// timeLeft is the time from now until t by whichever clock leaves less.
func timeLeft(now, t time.Time) time.Duration {
	return min(t.Sub(now), t.Round(0).Sub(now.Round(0)))
}

// anchored gives t, a wall clock time, a monotonic reading: the one that the
// clock, read as now, will show at t if nobody sets the wall clock.
func anchored(now, t time.Time) time.Time {
	wait := t.Sub(now.Round(0))
	if wait == math.MaxInt64 || wait == math.MinInt64 {
		return t // centuries away, or zero: no duration can say how far
	}
	return now.Add(wait)
}
