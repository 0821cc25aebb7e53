package main

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"strings"
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

// environment is what a credential needs of its mount: storage, client, clock, log and
// jobs, and whether it may write. It is safe for concurrent use.
//
// It owns every goroutine of the engine. spawn starts one under the mount's own context,
// and stop, which Vault calls through Clean, ends them all. Timers call spawn, so that
// none of them outlives the mount either: Vault runs several mounts in one process, and
// what one mount leaves behind would stay as long as another lives.
type environment struct {
	storage logical.Storage
	system  logical.SystemView
	events  logical.EventSender // nil: this Vault has no events
	logger  hclog.Logger
	client  *client
	now     func() time.Time       // with Go's monotonic reading; see before
	uuid    string                 // names the mount until path is known
	path    atomic.Pointer[string] // of the mount; requests tell it

	begun     time.Time
	refreshes chan struct{} // holds an element per refresh that runs; those waiting are served in turn

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

// newEnvironment takes from Vault's configuration what credentials need. Nothing runs
// yet; the first call of spawn starts the first goroutine.
func newEnvironment(ctx context.Context, conf *logical.BackendConfig, opts options) *environment {
	env := &environment{
		storage:   conf.StorageView,
		system:    conf.System,
		events:    conf.EventsSender,
		logger:    cmp.Or(conf.Logger, hclog.NewNullLogger()),
		now:       opts.now,
		uuid:      conf.BackendUUID,
		refreshes: make(chan struct{}, maxRefreshes),
	}
	if env.now == nil {
		env.now = time.Now //nolint:forbidigo // the one place that names the clock
	}
	env.begun = env.now()
	env.client = &client{now: env.now, transport: opts.transport}
	// Not ctx itself: the mount outlives the call that made it.
	env.life, env.end = context.WithCancel(context.WithoutCancel(ctx))
	return env
}

// spawn runs a job that stop ends. It reports whether the job could start.
func (env *environment) spawn(job func(context.Context)) bool {
	env.mu.Lock()
	defer env.mu.Unlock()
	if env.stopped() {
		return false
	}
	env.jobs.Go(func() { job(env.life) })
	return true
}

// stop cancels all jobs and waits for them, but no longer than cleanTimeout. No
// job starts after it. It may be called twice.
func (env *environment) stop() {
	env.mu.Lock()
	env.end()
	env.mu.Unlock()
	done := make(chan struct{})
	go func() {
		env.jobs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(cleanTimeout):
	}
}

// uptime is how long the mount has been there. No step of the wall clock changes it.
func (env *environment) uptime() time.Duration { return env.now().Sub(env.begun) }

func (env *environment) stopped() bool { return env.life.Err() != nil }

// mayWrite reports whether this node may write its own storage, and so may ask
// Autopay (rule 10). The active node of a performance secondary may, because
// tokens are local to a cluster. A tainted mount is being disabled or moved.
func (env *environment) mayWrite() bool {
	state := env.system.ReplicationState()
	return !state.HasState(consts.ReplicationPerformanceStandby) &&
		!state.HasState(consts.ReplicationDRSecondary) && !env.system.Tainted()
}

// log returns the logger for one credential. Its lines name the mount, because
// one process serves several mounts and shares one log.
func (env *environment) log(name string) hclog.Logger {
	return env.logger.With("mount", env.mountPath(), "name", name)
}

// mountPath names the mount in logs. Vault tells a plugin the mount's UUID when it starts
// it, and the path only with each request.
func (env *environment) mountPath() string {
	if path := env.path.Load(); path != nil {
		return *path
	}
	return env.uuid
}

// eventTimeout ends the sending of an event that Vault does not take.
const eventTimeout = 10 * time.Second

// send tells Vault's event system what happened to a credential, for those who would
// otherwise poll status or metrics, such as Vault Secrets Operator or a dashboard. A
// kind is autopay/OPERATION, as Vault's own engines name theirs. modified says that the
// data behind prefix has changed: the token, or the config. send does not wait and is
// best effort: nobody may be listening, OpenBao has no events, and nothing in the
// engine depends on them.
func (env *environment) send(kind, prefix string, modified bool, name string) {
	if env.events == nil {
		return
	}
	path := strings.TrimSuffix(prefix+name, "/"+defaultName)
	metadata := []string{
		"name", name,
		logical.EventMetadataPath, path,
		logical.EventMetadataDataPath, path,
		logical.EventMetadataOperation, strings.TrimPrefix(kind, "autopay/"),
		logical.EventMetadataModified, strconv.FormatBool(modified),
	}
	env.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, eventTimeout)
		defer cancel()
		if err := logical.SendEvent(ctx, env.events, kind, metadata...); err != nil {
			env.log(name).Trace("an event was not sent", "event_type", kind, "error", err)
		}
	})
}
