package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/helper/testhelpers/schema"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

const (
	testID     = "test-client"
	testSecret = "canary-secret-4711"
)

// start2000 is when a bubble's time begins.
var start2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// engine is a backend under test, with its storage, its simulator of Autopay and
// what it has logged. Inside a bubble it runs on the bubble's time.
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
	answers atomic.Int64        // counts the answers that were no errors
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

// configured returns a new engine whose default credential configure has written.
func configured(t *testing.T, more ...any) *engine {
	t.Helper()
	e := newEngine(t, autopaysim.Options{})
	e.configure("default", more...)
	return e
}

// start makes a new backend on the same storage, as Vault does after a restart.
func (e *engine) start() {
	e.t.Helper()
	b, err := newBackend(e.t.Context(), &logical.BackendConfig{
		StorageView:  e.storage,
		System:       e.view,
		Logger:       hclog.New(&hclog.LoggerOptions{Level: max(e.level, hclog.Trace), Output: e.logs}),
		BackendUUID:  "uuid",
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

// restart stops the backend and starts another on the same storage.
func (e *engine) restart() {
	e.t.Helper()
	e.clean(e.t.Context())
	e.start()
}

// peer starts another node on the same storage. change prepares it.
func (e *engine) peer(state consts.ReplicationState, change ...func(*engine)) *engine {
	e.t.Helper()
	node := &engine{t: e.t, storage: e.storage, sim: e.sim, view: &spyView{}, logs: e.logs, opts: e.opts}
	node.view.state.Store(uint32(state))
	for _, f := range change {
		f(node)
	}
	node.start()
	e.t.Cleanup(func() { node.clean(context.Background()) })
	return node
}

// do sends a request as Vault would, existence check included.
func (e *engine) do(ctx context.Context, op logical.Operation, path string, data fields) (*logical.Response, error) {
	e.t.Helper()
	req := &logical.Request{Operation: op, Path: path, Data: maps.Clone(data)}
	req.Storage, req.MountPoint = e.storage, "autopay/"
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
	// The first answers of each test are checked against their schema. All answers of TestModel would take a minute.
	if err == nil && resp != nil && !resp.IsError() && e.answers.Add(1) < 300 {
		schema.ValidateResponse(e.t, schema.GetResponseSchema(e.t, e.Route(path), req.Operation), resp, true)
	}
	return resp, err
}

// flatten returns everything in a response as text.
func flatten(resp *logical.Response) string {
	data, _ := json.Marshal(resp)
	return string(data)
}

func (e *engine) read(path string) (*logical.Response, error) {
	e.t.Helper()
	return e.do(e.t.Context(), logical.ReadOperation, path, nil)
}

func (e *engine) write(path string, data fields) (*logical.Response, error) {
	e.t.Helper()
	return e.do(e.t.Context(), logical.UpdateOperation, path, data)
}

func (e *engine) delete(path string) (*logical.Response, error) {
	e.t.Helper()
	return e.do(e.t.Context(), logical.DeleteOperation, path, nil)
}

// forget deletes a credential. Nothing of it may be left.
func (e *engine) forget(name string) {
	e.t.Helper()
	resp, err := e.delete("config/" + name)
	left := e.stored(configPrefix+name) + e.stored(tokenPrefix+name)
	if resp != nil || err != nil || left != "" {
		e.t.Errorf("delete: %v %v, want a 204; %q is left", resp, err, left)
	}
}

// fields are those of a request or response.
type fields = map[string]any

// withSecret returns the fields that a creation needs.
func withSecret() fields { return fields{"client_id": testID, "client_secret": testSecret} }

// configure writes a credential, which must succeed. More fields may follow in pairs.
func (e *engine) configure(name string, more ...any) {
	e.t.Helper()
	data := withSecret()
	for pair := range slices.Chunk(more, 2) {
		data[pair[0].(string)] = pair[1]
	}
	e.ok(e.write("config/"+name, data))
}

// ok returns a response that must be none to an error.
func (e *engine) ok(resp *logical.Response, err error) *logical.Response {
	e.t.Helper()
	if err != nil || resp.IsError() {
		e.t.Fatal(resp, err)
	}
	return resp
}

// token reads a token that must be live at Autopay, and returns the data.
func (e *engine) token(path string) fields {
	e.t.Helper()
	data := e.status(path)
	if !e.sim.Valid(data["access_token"].(string)) {
		e.t.Fatalf("%s: a dead token was handed out: expire_time %v", path, data["expire_time"])
	}
	return data
}

// status reads a path that must answer, and returns the data.
func (e *engine) status(path string) fields {
	e.t.Helper()
	resp := e.ok(e.read(path))
	if resp == nil {
		e.t.Fatalf("%s: nothing", path)
	}
	return resp.Data
}

// want checks fields of what a path answers. They come in pairs: a name, and its value.
func (e *engine) want(path string, pairs ...any) {
	e.t.Helper()
	read := e.status
	if strings.HasPrefix(path, "token") {
		read = e.token
	}
	got := read(path)
	for pair := range slices.Chunk(pairs, 2) {
		if field, want := pair[0].(string), pair[1]; got[field] != want {
			e.t.Errorf("%s: %s is %v, want %v", path, field, got[field], want)
		}
	}
}

// wantWithin checks how much time has passed since then.
func wantWithin(t *testing.T, then time.Time, most time.Duration) {
	t.Helper()
	if took := time.Since(then); took > most {
		t.Errorf("it took %s, want %s at most", took, most)
	}
}

// wantError checks that an error says something; "": that there is none.
func wantError(t *testing.T, what string, err error, says string) {
	t.Helper()
	if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%q: got %v, want %q", what, err, says)
	}
}

// wantCode returns a check of the HTTP status that a response or error becomes, and of
// what it says.
func (e *engine) wantCode(want int, says ...string) func(*logical.Response, error) {
	return func(resp *logical.Response, err error) {
		e.t.Helper()
		missing := func(words string) bool { return !strings.Contains(say(resp, err), words) }
		if got := code(resp, err); got != want || slices.ContainsFunc(says, missing) {
			e.t.Errorf("got a %d, want a %d that says %q: %v %v", got, want, says, resp, err)
		}
	}
}

// wantRequests checks how many token requests reached Autopay.
func (e *engine) wantRequests(want int) {
	e.t.Helper()
	if got := e.sim.Requests(""); got != want {
		e.t.Fatalf("%d requests to Autopay, want %d", got, want)
	}
}

// attempts returns when requests reached Autopay, counted from the bubble's start,
// without the first n.
func (e *engine) attempts(n int) []time.Duration {
	var at []time.Duration
	for _, entry := range e.sim.Log()[n:] {
		at = append(at, entry.Time.Sub(start2000))
	}
	return at
}

// wantUnchanged checks that act changes neither the stored credential nor the token.
func (e *engine) wantUnchanged(act func()) {
	e.t.Helper()
	config, token := e.status("config"), e.token("token")
	stored := e.stored(configPrefix + "default")
	act()
	delete(token, "ttl")
	now := e.token("token")
	delete(now, "ttl")
	if !maps.Equal(now, token) {
		e.t.Errorf("the token changed: %v", now)
	}
	if now := e.status("config"); !maps.Equal(now, config) {
		e.t.Errorf("the config changed: %v, was %v", now, config)
	}
	if e.stored(configPrefix+"default") != stored {
		e.t.Error("the stored credential changed")
	}
}

// stored is what storage holds at a key; "" if nothing.
func (e *engine) stored(key string) string {
	entry, err := e.storage.InmemStorage.Get(e.t.Context(), key)
	if err != nil || entry == nil {
		return ""
	}
	return string(entry.Value)
}

// put stores a value as another node, or damage, could have left it.
func (e *engine) put(key, value string) {
	e.t.Helper()
	entry := &logical.StorageEntry{Key: key, Value: []byte(value)}
	if err := e.storage.InmemStorage.Put(e.t.Context(), entry); err != nil {
		e.t.Fatal(err)
	}
}

// tick is Vault's periodic call.
func (e *engine) tick() {
	e.t.Helper()
	tick := &logical.Request{Operation: logical.RollbackOperation, Storage: e.storage, MountPoint: "autopay/"}
	e.ok(e.HandleRequest(e.t.Context(), tick))
}

// edit changes the stored config of the default credential, as another node does.
func (e *engine) edit(old, now string) {
	e.t.Helper()
	e.put("config/default", strings.Replace(e.stored("config/default"), old, now, 1))
	e.InvalidateKey(e.t.Context(), "config/default")
}

// minute lets a minute pass, with Vault's periodic call at its end.
func (e *engine) minute() {
	e.t.Helper()
	time.Sleep(time.Minute)
	e.tick()
	synctest.Wait()
}

// bubble runs a test in a synctest bubble, beside other tests: its time starts
// in 2000 and passes only while everything in it waits.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// scenes runs named subtests, each in a bubble of its own with an engine that has a
// token.
func scenes(t *testing.T, all map[string]func(e *engine)) {
	t.Helper()
	t.Parallel()
	for name, scene := range all {
		runInBubble(t, name, func(t *testing.T) { scene(configured(t)) })
	}
}

// runInBubble runs a named subtest in a bubble of its own, beside the others.
func runInBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { bubble(t, f) })
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

// fault is a fault of Autopay, which lasts.
func fault(kind string) autopaysim.Fault { return autopaysim.Fault{Kind: kind} }

// once is a fault that hits one request.
func once(f autopaysim.Fault) autopaysim.Fault { f.Times = 1; return f }

func status(code int) autopaysim.Fault { return autopaysim.Fault{Kind: "status", Status: code} }

func delay(by time.Duration) autopaysim.Fault { return autopaysim.Fault{Kind: "delay", Delay: by} }

func retryAfter(status int, value string) autopaysim.Fault {
	return autopaysim.Fault{Kind: "status", Status: status, Header: http.Header{"Retry-After": {value}}}
}

func testCA(t *testing.T) string {
	t.Helper()
	_, ca, err := autopaysim.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	return string(ca)
}

// spyStorage counts operations. A test may put something around each of them.
type spyStorage struct {
	logical.InmemStorage
	reads, writes atomic.Int64
	around        atomic.Value // of type around
	primary       *spyStorage  // holds config/; nil: this is not a performance secondary's
}

// of returns the storage that holds a key.
func (s *spyStorage) of(key string) *logical.InmemStorage {
	if s.primary != nil && strings.HasPrefix(key, configPrefix) {
		return &s.primary.InmemStorage
	}
	return &s.InmemStorage
}

// around runs an operation on storage, or makes it fail.
type around func(ctx context.Context, op, key string, do func() error) error

func (s *spyStorage) set(f around) { s.around.Store(f) }

func (s *spyStorage) run(ctx context.Context, op, key string, do func() error) error {
	if f, _ := s.around.Load().(around); f != nil {
		return f(ctx, op, key, do)
	}
	return do()
}

// heal ends all failures.
func (s *spyStorage) heal() { s.set(nil) }

// failWhen makes operations fail.
func (s *spyStorage) failWhen(err error, which func(op, key string) bool) {
	s.set(func(_ context.Context, op, key string, do func() error) error {
		if which(op, key) {
			return err
		}
		return do()
	})
}

// failOn makes one operation, or each ("") fail on all keys with a prefix.
func (s *spyStorage) failOn(operation, prefix string, err error) {
	s.failWhen(err, func(op, key string) bool {
		return (operation == "" || op == operation) && strings.HasPrefix(key, prefix)
	})
}

// readOnly makes writes fail as Vault refuses them on keys with a prefix, in the form in
// which the error crosses the plugin boundary.
func (s *spyStorage) readOnly(prefix string) {
	s.failWhen(errors.New(logical.ErrReadOnly.Error()), func(op, key string) bool {
		return (op == "put" || op == "delete") && strings.HasPrefix(key, prefix)
	})
}

// failPuts makes writes fail. It counts them from 1 and asks which.
func (s *spyStorage) failPuts(which func(n int64) bool) {
	var n atomic.Int64
	s.failWhen(errors.New("disk full"), func(op, _ string) bool { return op == "put" && which(n.Add(1)) })
}

// after calls then once an operation has been done. If then returns an error, the
// operation fails with it, as if its answer had been lost.
func (s *spyStorage) after(then func(op, key string) error) {
	s.set(func(_ context.Context, op, key string, do func() error) error {
		if err := do(); err != nil {
			return err
		}
		return then(op, key)
	})
}

// slow makes one operation take time. A get ends when its caller leaves.
func (s *spyStorage) slow(operation string, takes time.Duration) {
	s.set(func(ctx context.Context, op, _ string, do func() error) error {
		if op == operation {
			if op != "get" {
				ctx = context.WithoutCancel(ctx)
			}
			select {
			case <-time.After(takes):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return do()
	})
}

func (s *spyStorage) Get(ctx context.Context, key string) (entry *logical.StorageEntry, err error) {
	s.reads.Add(1)
	err = s.run(ctx, "get", key, func() (err error) { entry, err = s.of(key).Get(ctx, key); return err })
	return entry, err
}

func (s *spyStorage) List(ctx context.Context, prefix string) (names []string, err error) {
	s.reads.Add(1)
	err = s.run(ctx, "list", prefix, func() (err error) { names, err = s.of(prefix).List(ctx, prefix); return err })
	return names, err
}

func (s *spyStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	s.writes.Add(1)
	return s.run(ctx, "put", entry.Key, func() error { return s.of(entry.Key).Put(ctx, entry) })
}

func (s *spyStorage) Delete(ctx context.Context, key string) error {
	s.writes.Add(1)
	return s.run(ctx, "delete", key, func() error { return s.of(key).Delete(ctx, key) })
}

// logBuffer keeps what was logged. It is safe for concurrent use.
type logBuffer struct {
	takes atomic.Int64 // nanoseconds of each line
	mu    sync.Mutex
	text  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(l.takes.Load()))
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
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

// spyEvents is an event system that keeps what it receives.
type spyEvents struct {
	mu     sync.Mutex                  // guards sent and all
	sent   []string                    // type, name, data_path and modified of each event
	all    string                      // everything that events held
	answer func(context.Context) error // to each event
}

func (s *spyEvents) SendEvent(ctx context.Context, kind logical.EventType, event *logical.EventData) error {
	words := []string{string(kind)}
	for _, key := range []string{"name", logical.EventMetadataDataPath, logical.EventMetadataModified} {
		words = append(words, event.Metadata.Fields[key].GetStringValue())
	}
	s.mu.Lock()
	s.sent = append(s.sent, strings.Join(words, " "))
	s.all += event.String()
	s.mu.Unlock()
	return s.answer(ctx)
}

// take returns the events since the last call.
func (s *spyEvents) take() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	slices.Sort(sent) // each is sent by a goroutine of its own
	return sent
}

// steppedClock is a clock whose wall time can be set, while its monotonic time
// goes on. The zero value shows the bubble's time.
type steppedClock struct{ step atomic.Int64 }

func (c *steppedClock) set(step time.Duration) { c.step.Store(int64(step)) }

func (c *steppedClock) now() time.Time {
	now := time.Now()
	return clockReading(now.Add(time.Duration(c.step.Load())), now.Sub(start2000))
}

// stepClock restarts the engine with a clock that the test sets.
func (e *engine) stepClock() *steppedClock {
	e.t.Helper()
	clock := new(steppedClock)
	e.opts.now = clock.now
	e.restart()
	return clock
}

// clockReading returns what time.Now would at a wall time and a monotonic reading.
// Package time offers no way to make one, so this relies on the layout of time.Time
// (time/time.go), which TestClockReading checks.
func clockReading(wall time.Time, monotonic time.Duration) time.Time {
	const hasMonotonic, nsecShift = 1 << 63, 30
	since1885 := wall.Unix() - time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	t := struct {
		wall uint64
		ext  int64
		loc  *time.Location
	}{hasMonotonic | uint64(since1885)<<nsecShift | uint64(wall.Nanosecond()), int64(monotonic), nil}
	return *(*time.Time)(unsafe.Pointer(&t))
}
