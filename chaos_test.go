package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// slowStorage is storage whose operations take random time and fail at random.
// No lock is held meanwhile. It may be a performance secondary's: then config/ is
// the primary's, which nobody here can slow down, and token/ its own.
type slowStorage struct {
	*spyStorage
	primary *spyStorage // nil: not a secondary's

	mu      sync.Mutex
	rng     *rand.Rand
	slowest time.Duration
	failing bool // every third operation, at random
}

func (s *slowStorage) set(slowest time.Duration, failing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slowest, s.failing = slowest, failing
}

// around runs an operation with a pause before and after it. A failure may come
// after the operation has been done.
func (s *slowStorage) around(do func() error) error {
	s.mu.Lock()
	var before, after time.Duration
	if s.slowest > 0 {
		before, after = rand.N(s.slowest), rand.N(s.slowest)
	}
	fails, done := s.failing && s.rng.IntN(3) == 0, s.rng.IntN(2) == 0
	s.mu.Unlock()
	time.Sleep(before)
	defer time.Sleep(after)
	failure := errors.New("input/output error")
	if fails && !done {
		return failure
	}
	if err := do(); err != nil {
		return err
	}
	if fails {
		return failure
	}
	return nil
}

// of returns the storage that holds a key.
func (s *slowStorage) of(key string) *spyStorage {
	if s.primary != nil && strings.HasPrefix(key, configPrefix) {
		return s.primary
	}
	return s.spyStorage
}

func (s *slowStorage) Get(ctx context.Context, key string) (entry *logical.StorageEntry, err error) {
	err = s.around(func() (err error) { entry, err = s.of(key).Get(ctx, key); return err })
	return entry, err
}

func (s *slowStorage) List(ctx context.Context, prefix string) (names []string, err error) {
	err = s.around(func() (err error) { names, err = s.of(prefix).List(ctx, prefix); return err })
	return names, err
}

func (s *slowStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	return s.around(func() error { return s.of(entry.Key).Put(ctx, entry) })
}

func (s *slowStorage) Delete(ctx context.Context, key string) error {
	return s.around(func() error { return s.of(key).Delete(ctx, key) })
}

// TestConcurrentLives lets readers, operators, Vault and other nodes act on a mount
// at the same time, while storage and Autopay are slow and fail. Once all is well
// again, memory must agree with storage, and every token must be fresh.
func TestConcurrentLives(t *testing.T) {
	t.Parallel()
	for _, node := range []string{"active node", "performance secondary"} {
		for seed := range uint64(*modelRuns) {
			t.Run(fmt.Sprintf("%s, %d", node, seed), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) { newConcurrentLife(t, seed, node == "performance secondary").run() })
			})
		}
	}
}

// concurrentLife is a mount in which much happens at once.
type concurrentLife struct {
	*engine
	storage  *slowStorage
	rng      *rand.Rand
	operator *engine // where config is written: the primary, if this is a secondary
	names    []string
}

func newConcurrentLife(t *testing.T, seed uint64, secondary bool) *concurrentLife {
	t.Helper()
	l := &concurrentLife{rng: rand.New(rand.NewPCG(seed, 4711)), names: []string{"n0", "n1"}}
	e := newEngine(t, autopaysim.Options{
		Clients: map[string]string{"a": testSecret, "b": testSecret}, Lifetime: 2 * time.Minute << l.rng.IntN(9),
	})
	l.storage = &slowStorage{spyStorage: e.storage, rng: rand.New(rand.NewPCG(seed, 7))}
	l.engine, l.operator = e, e
	if secondary {
		l.storage = &slowStorage{spyStorage: &spyStorage{}, primary: e.storage, rng: l.storage.rng}
		l.engine = &engine{t: t, storage: l.storage.spyStorage, sim: e.sim, view: &spyView{}, logs: e.logs, opts: e.opts, backend: e.backend}
		l.view.state.Store(uint32(consts.ReplicationPerformanceSecondary))
		b, err := newBackend(t.Context(), &logical.BackendConfig{StorageView: l.storage, System: l.view, Logger: e.Logger(), BackendUUID: "uuid"}, e.opts)
		if err != nil {
			t.Fatal(err)
		}
		l.backend = b
		t.Cleanup(func() { b.clean(context.Background()) })
		return l
	}
	l.on(l.storage)
	return l
}

func (l *concurrentLife) run() {
	for round := 0; round < 12 && !l.t.Failed(); round++ {
		l.storage.set([]time.Duration{0, 50 * time.Millisecond, 2 * time.Second}[l.rng.IntN(3)], l.rng.IntN(4) == 0)
		faults := []autopaysim.Fault{
			{},
			{},
			{Kind: autopaysim.FaultStatus, Status: 503},
			{Kind: autopaysim.FaultStatus, Status: 401},
			{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second},
			{Kind: autopaysim.FaultHang},
			{Kind: autopaysim.FaultSameToken},
			{Kind: "close"},
		}
		l.sim.SetFault(faults[l.rng.IntN(len(faults))])
		var wg sync.WaitGroup
		for range 3 + l.rng.IntN(20) {
			at, act := time.Duration(l.rng.Int64N(int64(30*time.Second))), l.act()
			wg.Go(func() {
				time.Sleep(at)
				act()
			})
		}
		wg.Wait()
		l.sim.SetFault(autopaysim.Fault{})
		l.storage.set(0, false)
		for range 12 {
			l.minute()
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		for _, name := range l.names {
			l.check(name)
		}
	}
	// The primary of a secondary asks too, for tokens of its own.
	if most := l.sim.Stats().MaxInFlight; l.operator == l.engine && most > len(l.names) {
		l.t.Errorf("rule 2: %d requests in flight for %d credentials", most, len(l.names))
	}
}

// act returns something that a reader, an operator, Vault or another node does.
func (l *concurrentLife) act() func() {
	name := l.names[l.rng.IntN(len(l.names))]
	write := func(data map[string]any) func() {
		lag := time.Duration(l.rng.Int64N(int64(3 * time.Second)))
		return func() {
			_, _ = l.operator.write("config/"+name, data)
			l.learn(configPrefix+name, lag)
		}
	}
	switch dice := l.rng.IntN(100); {
	case dice < 40:
		return func() { l.readToken(name) }
	case dice < 58:
		return write(map[string]any{
			"client_id": []string{"a", "b"}[dice%2], "client_secret": testSecret, "token_request_limit": 0,
			"verify": l.operator == l.engine && dice%4 < 2,
		})
	case dice < 66:
		return write(map[string]any{"rotation_period": 5 + dice})
	case dice < 74:
		return func() { _, _ = l.write("rotate/"+name, nil) }
	case dice < 80:
		lag := time.Duration(l.rng.Int64N(int64(3 * time.Second)))
		return func() {
			_, _ = l.operator.do(l.t.Context(), logical.DeleteOperation, "config/"+name, nil)
			l.learn(configPrefix+name, lag)
		}
	case dice < 90:
		key := []string{configPrefix, tokenPrefix}[dice%2] + name
		return func() { l.InvalidateKey(l.t.Context(), key) }
	default:
		return func() { _ = l.periodic(l.t.Context(), nil) }
	}
}

// learn tells a secondary, some time later, that its primary has changed a key.
func (l *concurrentLife) learn(key string, lag time.Duration) {
	if l.operator != l.engine {
		time.Sleep(lag)
		l.InvalidateKey(l.t.Context(), key)
	}
}

func (l *concurrentLife) readToken(name string) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 5*time.Second)
	defer cancel()
	resp, err := l.do(ctx, logical.ReadOperation, "token/"+name, nil)
	if err == nil && resp != nil && !resp.IsError() && !l.sim.Valid(resp.Data["access_token"].(string)) {
		l.t.Error("rule 4: a dead token")
	}
}

// check compares what memory holds of a credential with storage, after all has
// been well for a while.
func (l *concurrentLife) check(name string) {
	l.t.Helper()
	stored, err := l.load(l.t.Context(), name, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	c := l.known(name)
	if c == nil {
		if stored.config != nil {
			l.t.Errorf("%s is configured and was never loaded", name)
		}
		return
	}
	s := c.snap.Load()
	if s == nil || s.storageVersion != c.storageVersion.Load() {
		if stored.config != nil {
			l.t.Errorf("%s is stale", name)
		}
		return
	}
	if (s.config == nil) != (stored.config == nil) || s.config != nil && *s.config != *stored.config {
		l.t.Errorf("rule 6: config of %s in memory %+v, in storage %+v", name, s.config, stored.config)
	}
	if s.config == nil {
		return
	}
	if memory, storage := asJSON(s.entry), asJSON(stored.entry); s.unsaved || memory != storage {
		l.t.Errorf("rule 6: token entry of %s in memory %s, in storage %s, unsaved %v", name, memory, storage, s.unsaved)
	}
	if now := l.now(); s.state(now) != stateOK {
		l.t.Errorf("rule 5: %s is %s, due at %s, now %s, failure %v", name, s.state(now), s.dueAt(), now, s.entry.Failure)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flight != nil || c.timer == nil {
		l.t.Errorf("rule 3: flight %v, timer %v", c.flight, c.timer)
	}
}

func asJSON(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}
