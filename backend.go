package main

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

// version is what -version prints and Vault shows as the running version. A
// variable, so that a test can build the next one (-ldflags -X).
var version = "v0.1.0"

const (
	// backgroundRefreshes is how many refreshes that nobody waits for run at a time.
	backgroundRefreshes = 8
	// cleanTimeout is how long Clean waits: it holds a lock for every mount in the process.
	cleanTimeout = time.Second

	backendHelp = `
The Autopay secrets engine keeps one bearer token per Autopay credential and
serves it to whoever may read it. It asks Autopay for as few tokens as
possible: a token is replaced before it expires, and only then.

Write a client ID and secret to config, then read token. rotate replaces the
token now; status and metrics show its health. A NAME behind each path tells
several credentials of one mount apart.
`
)

// backend is one mount.
type backend struct {
	*framework.Backend
	storage     logical.Storage
	client      *client
	now         func() time.Time // never runs slower than time goes by
	backendUUID string
	mount       atomic.Pointer[string] // the path of the mount, once a request has told it

	credentials   sync.Map      // name -> *credential
	invalidations atomic.Uint64 // counts InvalidateKey calls
	background    chan struct{} // holds a token per background refresh under way
	loading       atomic.Bool   // a load of all credentials is under way
	loaded        atomic.Bool   // all credentials are in memory
	loadFailed    bool          // the last load did not bring them all; guarded by loading

	mu   sync.Mutex      // guards the start of jobs against Clean
	life context.Context //nolint:containedctx // the backend's own life, ended by Clean
	end  context.CancelFunc
	jobs sync.WaitGroup
}

// options are what tests replace. The zero value is production.
type options struct {
	now       func() time.Time
	transport http.RoundTripper
}

// Factory makes the backend of one mount. It implements logical.Factory.
func Factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	return newBackend(ctx, conf, options{})
}

func newBackend(ctx context.Context, conf *logical.BackendConfig, opts options) (*backend, error) {
	if opts.now == nil {
		opts.now = systemClock()
	}
	b := &backend{
		storage:     conf.StorageView,
		client:      &client{now: opts.now, transport: opts.transport},
		now:         opts.now,
		backendUUID: conf.BackendUUID,
		background:  make(chan struct{}, backgroundRefreshes),
	}
	b.life, b.end = context.WithCancel(context.WithoutCancel(ctx))
	b.Backend = &framework.Backend{
		BackendType:    logical.TypeLogical,
		Help:           strings.TrimSpace(backendHelp),
		RunningVersion: version,
		PathsSpecial: &logical.Paths{
			SealWrapStorage: []string{configPrefix, tokenPrefix},
			LocalStorage:    []string{tokenPrefix},
		},
		Paths: []*framework.Path{
			b.pathConfigList(),
			b.pathConfig(),
			b.pathToken(),
			b.pathRotate(),
			b.pathStatus(),
			b.pathMetrics(),
		},
		InitializeFunc: b.initialize,
		PeriodicFunc:   b.periodic,
		Invalidate:     b.invalidate,
		Clean:          b.clean,
	}
	if err := b.Setup(ctx, conf); err != nil {
		b.end()
		return nil, err
	}
	return b, nil
}

// HandleRequest implements logical.Backend. It keeps wrong types from the
// SDK's check, which would quote them.
func (b *backend) HandleRequest(ctx context.Context, req *logical.Request) (*logical.Response, error) {
	if resp := b.hotRead(req); resp != nil {
		return resp, nil
	}
	if path := req.MountPoint; path != "" && path != b.mountPath() {
		b.mount.Store(&path) // a copy: the request may hold a secret
	}
	if strings.HasPrefix(req.Path, "config") {
		if err := checkConfigFields(req.Data); err != nil {
			return logical.ErrorResponse(err.Error()), nil
		}
	}
	resp, err := b.Backend.HandleRequest(ctx, req)
	if req.Operation == logical.HelpOperation && resp != nil {
		resp.Data["openapi"] = withPlainRefs(resp.Data["openapi"])
	}
	return resp, err
}

var ref = regexp.MustCompile(`"\$ref":("[^"]*")`)

// withPlainRefs spells the references of an OpenAPI document as Vault reads
// them, too. It decodes the document of an external plugin by the names of
// struct fields, to which "$ref" is unknown (hashicorp/vault issue 30714), and
// the schemas of requests and responses would be lost.
func withPlainRefs(document any) any {
	text, err := json.Marshal(document)
	if err != nil {
		return document
	}
	var plain map[string]any
	if json.Unmarshal(ref.ReplaceAll(text, []byte(`"$$ref":$1,"ref":$1`)), &plain) != nil {
		return document
	}
	return plain
}

// HandleExistenceCheck implements logical.Backend. It asks about the path
// alone: the SDK would quote data of the wrong type into the server's log.
func (b *backend) HandleExistenceCheck(ctx context.Context, req *logical.Request) (found, exists bool, err error) {
	bare := *req
	bare.Data = nil
	return b.Backend.HandleExistenceCheck(ctx, &bare)
}

// initialize starts loading in the background: Vault waits for it while it
// unseals.
func (b *backend) initialize(context.Context, *logical.InitializationRequest) error {
	b.load()
	return nil
}

// load brings all credentials into memory, which sets their timers.
func (b *backend) load() {
	if b.loaded.Load() || !b.loading.CompareAndSwap(false, true) {
		return
	}
	b.spawn(func(ctx context.Context) {
		defer b.loading.Store(false)
		names, err := b.storage.List(ctx, configPrefix)
		for _, name := range names {
			if _, _, e := b.find(ctx, name); e != nil {
				err = e
			}
		}
		if err == nil {
			b.loaded.Store(true)
		} else if ctx.Err() == nil && !b.loadFailed {
			b.Logger().Error("some credentials can't be loaded, they will be at a later tick", "mount", b.mountPath(), "error", err)
		}
		b.loadFailed = err != nil
	})
}

// periodic is the watchdog, called every minute: it starts what is due and
// not under way. It returns at once, for Vault holds its state lock.
func (b *backend) periodic(context.Context, *logical.Request) error {
	if !b.mayWrite() {
		return nil
	}
	b.load()
	now := b.now()
	b.credentials.Range(func(_, v any) bool {
		c := v.(*credential)
		s := c.snap.Load()
		switch {
		case s == nil || s.config == nil && s.epoch == c.epoch.Load():
		case s.epoch != c.epoch.Load() || s.due(now):
			c.refresh()
		case s.unsaved:
			b.spawn(func(ctx context.Context) {
				if err := c.exclusively(ctx, c.store); err != nil && ctx.Err() == nil {
					b.log(c.name).Debug("the token entry still can't be stored", "error", err)
				}
			})
		}
		return true
	})
	return nil
}

// invalidate marks what another node changed in storage, to be read again.
func (b *backend) invalidate(_ context.Context, key string) {
	b.invalidations.Add(1)
	prefix, name, _ := strings.Cut(key, "/")
	if prefix+"/" != configPrefix && prefix+"/" != tokenPrefix {
		return
	}
	if v, ok := b.credentials.Load(name); ok {
		v.(*credential).epoch.Add(1)
	} else {
		b.loaded.Store(false) // a name that another node configured
	}
}

// clean ends everything that the backend started. It may be called twice.
func (b *backend) clean(context.Context) {
	b.mu.Lock()
	b.end()
	b.mu.Unlock()
	b.credentials.Range(func(_, v any) bool {
		v.(*credential).disarm()
		return true
	})
	done := make(chan struct{})
	go func() {
		b.jobs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(cleanTimeout):
	}
}

// spawn runs a job that Clean ends, and reports whether it could start.
func (b *backend) spawn(job func(context.Context)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed() {
		return false
	}
	b.jobs.Go(func() { job(b.life) })
	return true
}

func (b *backend) closed() bool { return b.life.Err() != nil }

// credential returns the one credential of a name, made if there is none yet.
func (b *backend) credential(name string) *credential {
	if v, ok := b.credentials.Load(name); ok {
		return v.(*credential)
	}
	v, _ := b.credentials.LoadOrStore(name, newCredential(b, name))
	return v.(*credential)
}

// find returns a credential and what readers see of it: nil where the name is
// not configured, which leaves no trace in memory.
func (b *backend) find(ctx context.Context, name string) (*credential, *snapshot, error) {
	if _, known := b.credentials.Load(name); !known {
		seen := b.invalidations.Load()
		s, err := b.read(ctx, name, nil)
		if err != nil || s.config == nil && s.damage == nil {
			return nil, nil, err
		}
		c := b.credential(name)
		if c.snap.CompareAndSwap(nil, s) {
			c.arm()
		}
		if b.invalidations.Load() != seen {
			c.epoch.Add(1)
		}
	}
	c := b.credential(name)
	s, err := c.current(ctx)
	if err != nil || s.config == nil && s.damage == nil {
		return c, nil, err
	}
	return c, s, nil
}

// mayWrite reports whether this node may write its own storage, and so may
// ask Autopay (rule 10). A performance secondary may: tokens are local to it.
// A tainted mount is on its way out.
func (b *backend) mayWrite() bool {
	state := b.System().ReplicationState()
	return !state.HasState(consts.ReplicationPerformanceStandby) &&
		!state.HasState(consts.ReplicationDRSecondary) && !b.System().Tainted()
}

// log is the logger for one credential. The process may serve several mounts.
func (b *backend) log(name string) hclog.Logger {
	return b.Logger().With("mount", b.mountPath(), "name", name)
}

func (b *backend) mountPath() string {
	if mount := b.mount.Load(); mount != nil {
		return *mount
	}
	return b.backendUUID
}
