package main

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// indexStorage notes an index for each write in the context, as
// sdk/plugin/grpc_storage.go does.
type indexStorage struct{ *spyStorage }

func (s indexStorage) note(ctx context.Context) {
	if state := logical.IndexStateFromContext(ctx); state != nil {
		state.LocalIndex++
	}
}

func (s indexStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	s.note(ctx)
	return s.spyStorage.Put(ctx, entry)
}

func (s indexStorage) Delete(ctx context.Context, key string) error {
	s.note(ctx)
	return s.spyStorage.Delete(ctx, key)
}

// TestWritesReturnTheirIndex: Vault Enterprise answers a write with X-Vault-Index,
// so that its client reads no older state from a performance standby.
func TestWritesReturnTheirIndex(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.on(indexStorage{e.storage})
		for _, write := range []struct {
			op   logical.Operation
			path string
			data map[string]any
		}{
			{logical.UpdateOperation, "config", map[string]any{"client_id": testID, "client_secret": testSecret}},
			{logical.UpdateOperation, "config", map[string]any{"rotation_period": 3600}},
			{logical.UpdateOperation, "rotate", nil},
			{logical.DeleteOperation, "config", nil},
		} {
			time.Sleep(2 * time.Minute)
			state := &logical.WALState{ClusterID: "cluster"}
			_, err := e.do(logical.IndexStateContext(t.Context(), state), write.op, write.path, write.data)
			if err != nil || state.LocalIndex == 0 || state.ClusterID != "cluster" {
				t.Errorf("%s %s: error %v, state %+v", write.op, write.path, err, state)
			}
		}
		// A caller who has left is not written to: its context is gone.
		e.configure("default")
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second})
		state := new(logical.WALState)
		ctx, cancel := context.WithTimeout(logical.IndexStateContext(t.Context(), state), time.Second)
		defer cancel()
		if _, err := e.do(ctx, logical.UpdateOperation, "rotate", nil); code(nil, err) != http.StatusServiceUnavailable {
			t.Errorf("got %v, want no answer in time", err)
		}
		time.Sleep(10 * time.Second)
		if *state != (logical.WALState{}) {
			t.Errorf("the job wrote %+v for a caller who had left", state)
		}
	})
}

// on restarts the engine on other storage.
func (e *engine) on(storage logical.Storage) {
	e.t.Helper()
	e.clean(e.t.Context())
	b, err := newBackend(e.t.Context(), &logical.BackendConfig{StorageView: storage, System: e.view, Logger: e.Logger(), BackendUUID: "uuid"}, e.opts)
	if err != nil {
		e.t.Fatal(err)
	}
	e.backend = b
	if err := b.Initialize(e.t.Context(), &logical.InitializationRequest{Storage: storage}); err != nil {
		e.t.Fatal(err)
	}
}

// TestRotateBacksOff has an operator repeat rotate every second on a credential
// that Autopay refuses, whose refusals cost nothing of the limit.
func TestRotateBacksOff(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		gaps  []time.Duration // between attempts; the last one is the shortest of all that follow
	}{
		"refused": {
			autopaysim.Fault{Kind: "status", Status: 401},
			[]time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute},
		},
		"Retry-After": {retryAfter(429, "1200"), []time.Duration{20 * time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				e.configure("default", "token_request_limit", 3)
				time.Sleep(2 * time.Minute)
				e.sim.SetFault(test.fault)
				for range 3600 {
					_, err := e.write("rotate", nil)
					if err == nil || !strings.Contains(err.Error(), "; the next attempt is at ") {
						t.Fatalf("got %v, want the last error and when rotate may try again", err)
					}
					time.Sleep(time.Second)
				}
				at := e.attempts(1)
				for i := 1; i < len(at); i++ {
					if gap, want := at[i]-at[i-1], test.gaps[min(i, len(test.gaps))-1]; gap < want || i < len(test.gaps) && gap > want+time.Second {
						t.Errorf("attempt %d came %s after the one before, want %s", i, gap, want)
					}
				}
				if len(at) < 3 {
					t.Errorf("%d attempts in an hour", len(at))
				}
			})
		})
	}
}

// slowList answers a List after a while, with what it saw when it was called.
type slowList struct{ *spyStorage }

func (s slowList) List(ctx context.Context, prefix string) ([]string, error) {
	names, err := s.spyStorage.List(ctx, prefix)
	time.Sleep(time.Second)
	return names, err
}

// TestANameConfiguredDuringALoad: on a performance secondary, the primary
// configures a name while the names are being listed. The next periodic call
// finds it, without a reader.
func TestANameConfiguredDuringALoad(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("first", "verify", false)
		e.view.state.Store(uint32(consts.ReplicationPerformanceSecondary))
		e.on(slowList{e.storage})
		time.Sleep(time.Millisecond) // the load is under way
		first, _ := e.storage.Get(t.Context(), "config/first")
		if err := e.storage.Put(t.Context(), &logical.StorageEntry{Key: "config/second", Value: first.Value}); err != nil {
			t.Fatal(err)
		}
		e.InvalidateKey(t.Context(), "config/second")
		for range 3 {
			e.minute()
		}
		e.wantRequests(2)
	})
}

// TestAStandbyOfANodeThatIsAhead: the active node's clock is 40 s ahead of the
// standby's.
func TestAStandbyOfANodeThatIsAhead(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.stepClock().set(40 * time.Second)
		e.configure("default")
		standby := &engine{t: t, storage: e.storage, sim: e.sim, view: &spyView{}, logs: e.logs, opts: options{transport: e.opts.transport}}
		standby.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
		standby.start()
		defer standby.clean(t.Context())
		passedOn := 0
		for range 17 * 60 {
			if resp, err := standby.read("token"); err != nil {
				passedOn++
			} else if !e.sim.Valid(resp.Data["access_token"].(string)) {
				t.Fatal("a dead token")
			}
			time.Sleep(time.Minute)
		}
		if passedOn > 1 {
			t.Errorf("%d of %d reads were passed on to the active node, want one", passedOn, 17*60)
		}
	})
}

// TestManyColdCredentials: readers of many credentials without a token start a
// limited number of exchanges at a time, first come first served.
func TestManyColdCredentials(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		const names = 200
		e := newEngine(t, autopaysim.Options{})
		for i := range names {
			e.configure(fmt.Sprintf("n%d", i), "verify", false)
		}
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second})
		var wg sync.WaitGroup
		for i := range names {
			wg.Go(func() {
				e.token(fmt.Sprintf("token/n%d", i))
				if late := time.Since(start2000) - 5*time.Second*time.Duration(1+i/(urgentPlaces+refreshPlaces)); late > 0 {
					t.Errorf("reader %d was answered %s too late", i, late)
				}
			})
			synctest.Wait() // one after the other
		}
		wg.Wait()
		if most := e.sim.Stats().MaxInFlight; most != urgentPlaces+refreshPlaces {
			t.Errorf("%d exchanges at a time, want %d", most, urgentPlaces+refreshPlaces)
		}
	})
}

// TestHangingCredentialsDelayNobody: Autopay leaves many credentials without an
// answer, again and again. A healthy one is refreshed on time.
func TestHangingCredentialsDelayNobody(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("healthy")
		for i := range 128 {
			e.sim.SetClient(fmt.Sprintf("hangs%d", i), testSecret)
			e.configure(fmt.Sprintf("n%d", i), "client_id", fmt.Sprintf("hangs%d", i), "request_timeout", 60, "rotation_period", "1h")
		}
		inner := e.opts.transport
		e.opts.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			body, err := r.GetBody()
			if err != nil {
				return nil, err
			}
			asked := make([]byte, r.ContentLength)
			if _, err := body.Read(asked); err == nil && strings.Contains(string(asked), "hangs") {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return inner.RoundTrip(r)
		})
		e.restart()
		before := e.token("token/healthy")["access_token"]
		time.Sleep(18*time.Hour + time.Minute) // the others have been hanging for hours
		if e.token("token/healthy")["access_token"] == before {
			t.Error("the refresh is more than a minute late")
		}
	})
}

// TestStoredByV010 loads what v0.1.0 stored, and what a later version may add: the
// same tokens go on, without a request.
func TestStoredByV010(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(stored string) string{
		"as it was stored": func(stored string) string { return stored },
		"with what a later version adds": func(stored string) string {
			return strings.Replace(stored, "{", `{"introduced_later":{"a":[1]},`, 1)
		},
		"with a failure of a later form": func(stored string) string {
			return strings.Replace(stored, `"status":503`, `"status":"unavailable"`, 1)
		},
		"with a rule that came later": func(stored string) string {
			return strings.Replace(stored, `"request_timeout":10`, `"request_timeout":3600`, 1)
		},
		"with a number of a later form": func(stored string) string {
			return strings.Replace(stored, `"token_request_limit":100`, `"token_request_limit":{"per_day":100}`, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				e.clean(t.Context())
				e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503}) // the retry of a failed refresh is due
				const folder = "testdata/v0.1.0"
				err := fs.WalkDir(os.DirFS(folder), ".", func(path string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() {
						return err
					}
					stored, err := os.ReadFile(filepath.Join(folder, path))
					if err != nil {
						return err
					}
					return e.storage.Put(t.Context(), &logical.StorageEntry{Key: strings.TrimSuffix(path, ".json"), Value: []byte(change(string(stored)))})
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Minute) // the entries were stored two minutes into 2000
				e.start()
				for name, want := range map[string]string{"plain": "2000-01-01T00:02:00Z", "full": "2000-01-01T00:00:00Z"} {
					resp, err := e.read("token/" + name)
					if err != nil || resp.IsError() || resp.Data["last_vault_rotation"] != want {
						t.Errorf("%s: %v %v, want the token of %s", name, resp, err, want)
					}
				}
				if got := e.status("status/unproved")["state"]; got != "pending" {
					t.Errorf("unproved is %v, want pending", got)
				}
				config := e.status("config/full")
				if config["rotation_period"] != int64(43200) || config["token_request_limit"] != 7 || !strings.HasPrefix(config["ca_cert"].(string), "-----BEGIN") {
					t.Errorf("config/full: %v", config)
				}
				if used := e.status("status/plain")["token_requests_24h"]; used != 2 {
					t.Errorf("%v requests in the ledger of plain, want 2", used)
				}
			})
		})
	}
}
