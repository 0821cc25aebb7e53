package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
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
	level   hclog.Level         // of what is logged; the zero value is everything
	events  logical.EventSender // nil: there is no event system
	answers atomic.Int64        // that were no errors
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

		EventsSender: e.events,
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
	// The first answers of each test are what OpenAPI says of them; all of TestModel's would take a minute.
	if err == nil && resp != nil && !resp.IsError() && e.answers.Add(1) < 300 {
		schema.ValidateResponse(e.t, schema.GetResponseSchema(e.t, e.Route(path), req.Operation), resp, true)
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
		if after := runtime.NumGoroutine(); after > before+10 { // one may be about to end; a leak would be 200
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}
