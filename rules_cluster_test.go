package main

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestRule10NodesThatMayNotWriteNeverAsk tries each path in each replication state,
// with a live token and without one.
func TestRule10NodesThatMayNotWriteNeverAsk(t *testing.T) {
	t.Parallel()
	const (
		ok        = "ok"
		elsewhere = "read-only" // bare, so that Vault passes the request on
	)
	type outcome struct{ has, none string } // with a live token, and without
	same := func(what string) outcome { return outcome{what, what} }
	for name, test := range map[string]struct {
		state    consts.ReplicationState
		readOnly []string // prefixes in storage
		want     map[string]outcome
		asks     bool
	}{
		"active node": {
			consts.ReplicationPerformancePrimary, nil,
			map[string]outcome{"read token": same(ok), "update rotate": same(ok), "update config": same(ok), "delete config": same(ok)},
			true,
		},
		"performance standby": {
			consts.ReplicationPerformanceStandby,
			[]string{configPrefix, tokenPrefix},
			map[string]outcome{"read token": {ok, elsewhere}, "update rotate": same(elsewhere), "update config": same(elsewhere), "delete config": same(elsewhere)},
			false,
		},
		"performance secondary": {
			consts.ReplicationPerformanceSecondary,
			[]string{configPrefix},
			map[string]outcome{"read token": same(ok), "update rotate": same(ok), "update config": same(elsewhere), "delete config": same(elsewhere)},
			true,
		},
		"standby of a performance secondary": {
			consts.ReplicationPerformanceSecondary | consts.ReplicationPerformanceStandby,
			[]string{configPrefix, tokenPrefix},
			map[string]outcome{"read token": {ok, elsewhere}, "update rotate": same(elsewhere), "update config": same(elsewhere), "delete config": same(elsewhere)},
			false,
		},
		"DR secondary": {
			consts.ReplicationDRSecondary,
			[]string{configPrefix, tokenPrefix},
			map[string]outcome{"read token": {ok, elsewhere}, "update rotate": same(elsewhere), "update config": same(elsewhere), "delete config": same(elsewhere)},
			false,
		},
	} {
		maps.Copy(test.want, map[string]outcome{"read status": same(ok), "read config": same(ok)}) // on every node
		for what, want := range test.want {
			for name2, want := range map[string]string{"has": want.has, "none": want.none} {
				runInBubble(t, fmt.Sprintf("%s, %s, %s", name, what, name2), func(t *testing.T) {
					e := newEngine(t, autopaysim.Options{})
					e.configure("has")
					e.configure("none", "verify", false)
					time.Sleep(time.Hour)
					e.clean(t.Context())
					e.view.state.Store(uint32(test.state))
					e.storage.readOnly(test.readOnly...)
					e.start()
					op, path, _ := strings.Cut(what, " ")
					var data map[string]any
					if what == "update config" {
						data = map[string]any{"rotation_period": "1h"}
					}
					resp, err := e.do(t.Context(), logical.Operation(op), path+"/"+name2, data)
					got := ok
					if err == logical.ErrReadOnly { //nolint:errorlint // it must be bare
						got = elsewhere
					} else if err != nil || resp.IsError() {
						got = say(resp, err)
					}
					if got != want {
						t.Errorf("got %s, want %s", got, want)
					}
					// A refresh falls due, for the timer, the tick and a read.
					asked := e.sim.Requests("")
					if !test.asks && asked != 1 {
						t.Errorf("%d requests, want the first one only", asked)
					}
					time.Sleep(17*time.Hour + time.Second)
					e.tick()
					_, _ = e.read("token/has")
					synctest.Wait()
					if asks := e.sim.Requests("") > asked; asks != test.asks && what != "delete config" {
						t.Errorf("asked when due: %v, want %v", asks, test.asks)
					}
				})
			}
		}
	}
}

// TestRule10TheGuardComesFirst has storage that could be written: it is not only
// storage that keeps such a node from asking.
func TestRule10TheGuardComesFirst(t *testing.T) {
	t.Parallel()
	for name, state := range map[string]consts.ReplicationState{
		"performance standby": consts.ReplicationPerformanceStandby, "DR secondary": consts.ReplicationDRSecondary,
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t, "verify", false)
			e.view.state.Store(uint32(state))
			writes := e.storage.writes.Load()
			for _, do := range []func() (*logical.Response, error){
				func() (*logical.Response, error) { return e.read("token") },
				func() (*logical.Response, error) { return e.write("rotate", nil) },
				func() (*logical.Response, error) { return e.write("config", map[string]any{"client_id": "other"}) },
			} {
				if _, err := do(); err != logical.ErrReadOnly { //nolint:errorlint // it must be bare
					t.Errorf("got %v, want read-only", err)
				}
			}
			e.tick()
			synctest.Wait()
			if e.credential("default").noRefreshUntil.Load() != 0 {
				t.Error("the tick has started a refresh")
			}
			_ = e.credential("default").refresh().wait(t.Context())
			e.wantRequests(0)
			if got := e.storage.writes.Load(); got != writes {
				t.Errorf("%d writes", got-writes)
			}
		})
	}
}

func TestRule10InvalidateReadsStorageAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.token("token")
		standby := e.peer(consts.ReplicationPerformanceStandby)
		standby.token("token")
		time.Sleep(18*time.Hour + time.Second) // the active node replaces the token
		want := e.token("token")["access_token"]
		if standby.token("token")["access_token"] == want {
			t.Fatal("the standby has another token before it was told")
		}
		standby.InvalidateKey(t.Context(), tokenPrefix+"default")
		if standby.token("token")["access_token"] != want {
			t.Error("the standby serves the old token after the invalidation")
		}
		e.wantRequests(2)

		// The active node deletes the credential, configures it and deletes it again.
		for _, known := range []bool{false, true, false} {
			if known {
				e.configure("default")
			} else if _, err := e.delete("config"); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{configPrefix, tokenPrefix} {
				standby.InvalidateKey(t.Context(), key+"default")
			}
			if resp, err := standby.read("token"); err != nil || resp.IsError() == known {
				t.Errorf("configured: %v, the standby says %v %v", known, resp, err)
			}
		}
	})
}

func TestRule10ASecondaryLearnsOfNewNames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		secondary := e.peer(consts.ReplicationPerformanceSecondary)
		synctest.Wait() // loading is over
		e.configure("oslo", "verify", false)
		e.clean(t.Context())
		secondary.InvalidateKey(t.Context(), "config/oslo")
		for range 10 {
			secondary.minute()
		}
		e.wantRequests(1)
	})
}

// TestANodeThatTurnsStandbyForgetsWhatItCouldNotStore: a node becomes a standby while
// its request is under way. What it could not store must not hide what the new
// active node stores.
func TestANodeThatTurnsStandbyForgetsWhatItCouldNotStore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		active := configured(t)
		node := active.peer(0)
		synctest.Wait() // loading is over
		time.Sleep(2 * time.Minute)
		active.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second, Times: 1})
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = node.write("rotate", nil) })
		time.Sleep(time.Second)
		node.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
		active.storage.readOnly("")
		wg.Wait()
		active.storage.heal()
		if a, b := active.token("token"), node.token("token"); a["access_token"] != b["access_token"] {
			t.Error("a token is served that storage did not take")
		}
		time.Sleep(2 * time.Minute)
		active.InvalidateKey(t.Context(), "token/default")
		if _, err := active.write("rotate", nil); err != nil {
			t.Fatal(err)
		}
		node.InvalidateKey(t.Context(), "token/default")
		if a, b := active.token("token"), node.token("token"); a["access_token"] != b["access_token"] {
			t.Error("the standby serves a token that is not in storage", a["last_vault_rotation"], b["last_vault_rotation"])
		}
		node.view.state.Store(0)
		node.tick()
		synctest.Wait()
		active.InvalidateKey(t.Context(), "token/default")
		if used := active.status("status")["token_requests_24h"]; used != active.sim.Requests("") {
			t.Errorf("%v requests in the ledger, want %d", used, active.sim.Requests(""))
		}
	})
}

// TestRule10ASecondaryLearnsOfNewSettings: the settings of a known credential are
// changed on the primary. The tick obtains the token that they need.
func TestRule10ASecondaryLearnsOfNewSettings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.sim.SetClient("second", testSecret)
		e.configure("default")
		secondary := e.peer(consts.ReplicationPerformanceSecondary)
		synctest.Wait() // loading is over
		e.configure("default", "client_id", "second", "verify", false)
		e.clean(t.Context())
		secondary.InvalidateKey(t.Context(), "config/default")
		secondary.minute()
		e.wantRequests(2)
	})
}

// TestRule10UnsavedEntryIsNotStored: a node that could not store its token may not
// write any more.
func TestRule10UnsavedEntryIsNotStored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.storage.failPuts(func(n int64) bool { return n > 1 }) // after the ledger
		e.token("token")
		e.storage.heal()
		e.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
		writes := e.storage.writes.Load()
		if err := e.credential("default").refresh().wait(t.Context()); err != nil {
			t.Error(err)
		}
		if got := e.storage.writes.Load(); got != writes {
			t.Errorf("%d writes", got-writes)
		}
	})
}

// TestANameConfiguredDuringALoad: on a performance secondary, the primary
// configures a name while the names are being listed. The next periodic call
// finds it, without a reader.
func TestANameConfiguredDuringALoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("first", "verify", false)
		e.view.state.Store(uint32(consts.ReplicationPerformanceSecondary))
		e.storage.set(func(_ context.Context, op, _ string, do func() error) error {
			if op == "list" {
				defer time.Sleep(time.Second) // and answers with what it saw before
			}
			return do()
		})
		e.restart()
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
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.stepClock().set(40 * time.Second)
		e.configure("default")
		standby := e.peer(consts.ReplicationPerformanceStandby, func(node *engine) { node.opts.now = nil })
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

// TestRule10WritesBelongToTheActiveNode: each write is passed on bare, and asks Autopay
// for nothing, on a performance standby and, if it is the config's, on a performance
// secondary, whose own storage could take the rest.
func TestRule10WritesBelongToTheActiveNode(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		state    consts.ReplicationState
		readOnly string
		paths    []string
	}{
		"performance standby":   {consts.ReplicationPerformanceStandby, "", []string{"config/new", "config/old", "rotate/old"}},
		"performance secondary": {consts.ReplicationPerformanceSecondary, configPrefix, []string{"config/new", "config/old"}},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("another", testSecret)
			e.configure("old") // young: a rotate would keep it
			node := e.peer(test.state)
			e.storage.readOnly(test.readOnly)
			for _, path := range test.paths {
				data := withSecret()
				data["client_id"] = "another"
				if _, err := node.write(path, data); err != logical.ErrReadOnly { //nolint:errorlint // it must be bare
					t.Errorf("%s: %v, want read-only", path, err)
				}
			}
			e.wantRequests(1)
		})
	}
}
