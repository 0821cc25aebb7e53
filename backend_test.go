package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

const (
	testID     = "test-client"
	testSecret = "canary-secret-4711"
)

// engine is a backend under test, with its storage, its stand-in for Autopay
// and everything it logged. Inside a synctest bubble its time is the bubble's.
type engine struct {
	*backend
	t       *testing.T
	storage *spyStorage
	sim     *autopaysim.Server
	view    *spyView
	logs    *logBuffer
	opts    options
	level   hclog.Level // of what is logged; the zero value is everything
}

func newEngine(t *testing.T, sim autopaysim.Options) *engine {
	t.Helper()
	if sim.Clients == nil {
		sim.Clients = map[string]string{testID: testSecret}
	}
	e := &engine{
		t:       t,
		storage: &spyStorage{},
		sim:     autopaysim.New(sim),
		view:    &spyView{},
		logs:    &logBuffer{},
	}
	e.opts.transport = e.sim.RoundTripper()
	t.Cleanup(e.sim.Close)
	e.start()
	t.Cleanup(func() { e.clean(context.Background()) })
	return e
}

// start makes a new backend on the same storage, as Vault does after a restart.
func (e *engine) start() {
	e.t.Helper()
	b, err := newBackend(e.t.Context(), &logical.BackendConfig{
		StorageView: e.storage,
		System:      e.view,
		Logger:      hclog.New(&hclog.LoggerOptions{Level: max(e.level, hclog.Trace), Output: e.logs}),
		BackendUUID: "uuid",
	}, e.opts)
	if err != nil {
		e.t.Fatal(err)
	}
	e.backend = b
	if err := b.Initialize(e.t.Context(), &logical.InitializationRequest{Storage: e.storage}); err != nil {
		e.t.Fatal(err)
	}
}

// restart ends the backend, in good order or as kill -9 does, and starts another.
func (e *engine) restart() {
	e.t.Helper()
	e.clean(e.t.Context())
	e.start()
}

// do sends a request as Vault would, existence check included.
func (e *engine) do(ctx context.Context, op logical.Operation, path string, data map[string]any) (*logical.Response, error) {
	e.t.Helper()
	req := &logical.Request{Operation: op, Path: path, Data: maps.Clone(data), Storage: e.storage, MountPoint: "autopay/"}
	if op == logical.UpdateOperation {
		found, exists, err := e.HandleExistenceCheck(ctx, req)
		if err != nil {
			return nil, err
		}
		if found && !exists {
			req.Operation = logical.CreateOperation
		}
	}
	resp, err := e.HandleRequest(ctx, req)
	if err != nil && strings.Contains(err.Error(), testSecret) || strings.Contains(flatten(resp), testSecret) {
		e.t.Errorf("%s %s shows the secret: %v %s", op, path, err, flatten(resp))
	}
	return resp, err
}

// flatten is all that a response shows, as text.
func flatten(resp *logical.Response) string {
	data, _ := json.Marshal(resp)
	return string(data)
}

func (e *engine) read(path string) (*logical.Response, error) {
	e.t.Helper()
	return e.do(e.t.Context(), logical.ReadOperation, path, nil)
}

func (e *engine) write(path string, data map[string]any) (*logical.Response, error) {
	e.t.Helper()
	return e.do(e.t.Context(), logical.UpdateOperation, path, data)
}

// configure writes a credential that must be taken; more fields may be given in pairs.
func (e *engine) configure(name string, more ...any) {
	e.t.Helper()
	data := map[string]any{"client_id": testID, "client_secret": testSecret}
	for i := 0; i < len(more); i += 2 {
		data[more[i].(string)] = more[i+1]
	}
	resp, err := e.write("config/"+name, data)
	if err != nil || resp.IsError() {
		e.t.Fatalf("config/%s: %v %v", name, resp, err)
	}
}

// token reads a token that must be live at Autopay, and returns the data.
func (e *engine) token(path string) map[string]any {
	e.t.Helper()
	resp, err := e.read(path)
	if err != nil || resp == nil || resp.IsError() {
		e.t.Fatalf("%s: %v %v", path, resp, err)
	}
	if !e.sim.Valid(resp.Data["access_token"].(string)) {
		e.t.Fatalf("%s: a dead token was handed out: expire_time %v", path, resp.Data["expire_time"])
	}
	return resp.Data
}

func (e *engine) status(path string) map[string]any {
	e.t.Helper()
	resp, err := e.read(path)
	if err != nil || resp == nil || resp.IsError() {
		e.t.Fatalf("%s: %v %v", path, resp, err)
	}
	return resp.Data
}

// wantRequests checks how many token requests reached Autopay.
func (e *engine) wantRequests(want int) {
	e.t.Helper()
	if got := e.sim.Requests(""); got != want {
		e.t.Fatalf("%d requests to Autopay, want %d", got, want)
	}
}

// tick is Vault's periodic call.
func (e *engine) tick() {
	e.t.Helper()
	_, err := e.HandleRequest(e.t.Context(), &logical.Request{Operation: logical.RollbackOperation, Storage: e.storage, MountPoint: "autopay/"})
	if err != nil {
		e.t.Fatal(err)
	}
}

// code is the HTTP status that a response or error becomes.
func code(resp *logical.Response, err error) int {
	var coded logical.HTTPCodedError
	switch {
	case errors.As(err, &coded):
		return coded.Code()
	case err != nil:
		return http.StatusInternalServerError
	case resp.IsError():
		return http.StatusBadRequest
	case resp == nil:
		return http.StatusNotFound
	}
	return http.StatusOK
}

// say is the text of a failed response.
func say(resp *logical.Response, err error) string {
	if err == nil && resp.IsError() {
		err = resp.Error()
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

// spyStorage counts operations and fails those that fail tells it to.
type spyStorage struct {
	logical.InmemStorage
	reads, writes atomic.Int64
	mu            sync.Mutex
	fail          func(op, key string) error // guarded by mu; nil: nothing fails
}

func (s *spyStorage) failWith(fail func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *spyStorage) check(op, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		return nil
	}
	return s.fail(op, key)
}

func (s *spyStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	s.reads.Add(1)
	if err := s.check("get", key); err != nil {
		return nil, err
	}
	return s.InmemStorage.Get(ctx, key)
}

func (s *spyStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	s.writes.Add(1)
	if err := s.check("put", entry.Key); err != nil {
		return err
	}
	return s.InmemStorage.Put(ctx, entry)
}

func (s *spyStorage) Delete(ctx context.Context, key string) error {
	s.writes.Add(1)
	if err := s.check("delete", key); err != nil {
		return err
	}
	return s.InmemStorage.Delete(ctx, key)
}

func (s *spyStorage) List(ctx context.Context, prefix string) ([]string, error) {
	s.reads.Add(1)
	if err := s.check("list", prefix); err != nil {
		return nil, err
	}
	return s.InmemStorage.List(ctx, prefix)
}

// logBuffer keeps what was logged. It is safe for concurrent use.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestLifecycle(t *testing.T) {
	t.Parallel()
	t.Run("clean ends everything at once, twice too, and nothing is written after it", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.configure("default")
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
			time.Sleep(18 * time.Hour) // the refresh is under way and hangs
			synctest.Wait()
			begun := time.Now()
			e.clean(t.Context())
			e.clean(t.Context())
			if took := time.Since(begun); took > time.Second {
				t.Errorf("clean took %s", took)
			}
			writes := e.storage.writes.Load()
			e.tick()
			time.Sleep(48 * time.Hour)
			if got := e.storage.writes.Load(); got != writes {
				t.Errorf("%d writes after clean", got-writes)
			}
			if _, err := e.write("config", map[string]any{"client_id": "other"}); code(nil, err) != http.StatusServiceUnavailable {
				t.Errorf("write after clean: %v", err)
			}
		})
	})
	t.Run("unseal does not wait for Autopay or for loading", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.configure("default")
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
			e.clean(t.Context())
			time.Sleep(48 * time.Hour) // the token dies while Vault is sealed
			begun := time.Now()
			e.start()
			if took := time.Since(begun); took > 0 {
				t.Errorf("initialize took %s", took)
			}
		})
	})
}

func TestNoGoroutineSurvives200Mounts(t *testing.T) { //nolint:paralleltest // counts goroutines
	synctest.Test(t, func(t *testing.T) {
		var before int
		for round := range 201 {
			e := newEngine(t, autopaysim.Options{})
			e.configure("default")
			e.token("token")
			e.clean(t.Context())
			synctest.Wait()
			if round == 0 {
				before = runtime.NumGoroutine()
			}
		}
		if after := runtime.NumGoroutine(); after > before {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}

// spyView is a system view that counts the calls back into Vault. It starts
// as the active node of a primary cluster.
type spyView struct {
	logical.StaticSystemView
	calls   atomic.Int64
	state   atomic.Uint32
	tainted atomic.Bool
}

func (v *spyView) ReplicationState() consts.ReplicationState {
	v.calls.Add(1)
	return consts.ReplicationState(v.state.Load())
}

func (v *spyView) Tainted() bool {
	v.calls.Add(1)
	return v.tainted.Load()
}
