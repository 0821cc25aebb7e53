package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestRule6StorageIsTheTruth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		token := e.token("token")["access_token"]
		for range 5 {
			e.restart()
			e.want("token", "access_token", token)
		}
		e.wantRequests(1)
		// The timer is set again without a reader.
		e.restart()
		time.Sleep(18*time.Hour + time.Second)
		e.wantRequests(2)
	})
}

func TestRule7ATokenBelongsToItsSettings(t *testing.T) {
	t.Parallel()
	notStored := func(prefix string) func(e *engine, old any) {
		return func(e *engine, old any) {
			e.storage.failOn("put", prefix, errors.New("disk full"))
			e.wantCode(http.StatusInternalServerError)(e.write("config", fields{"client_id": "second"}))
			e.storage.heal()
			e.restart()
			e.want("token", "access_token", old)
		}
	}
	for name, test := range map[string]func(e *engine, old any){
		"the config can't be stored": notStored(configPrefix),
		"the ledger can't be stored": notStored(tokenPrefix),
		"a crash between config and token": func(e *engine, old any) {
			e.storage.failPuts(func(n int64) bool { return n == 3 }) // after the ledger and the config
			e.configure("default", "client_id", "second")
			for range 2 {
				if e.token("token")["access_token"] == old {
					e.t.Error("the token of the old client is served")
				}
				e.restart() // loses what was only in memory
			}
			e.wantRequests(3)
		},
		"verify=false": func(e *engine, old any) {
			e.configure("default", "client_id", "second", "verify", false)
			e.wantRequests(1)
			e.want("status", "state", "pending")
			if e.token("token")["access_token"] == old {
				e.t.Error("the token of the old client is served")
			}
			e.wantRequests(2)
		},
		"so does a failure": func(e *engine, _ any) {
			e.sim.SetFault(status(401))
			time.Sleep(25 * time.Hour)
			e.wantCode(http.StatusBadGateway)(e.read("token"))
			e.sim.SetFault(autopaysim.Fault{})
			e.configure("default", "client_id", "second", "verify", false)
			e.want("status", "state", "pending")
			e.token("token")
		},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t)
			e.sim.SetClient("second", testSecret)
			test(e, e.token("token")["access_token"])
		})
	}
}

func TestRule8Ledger(t *testing.T) {
	t.Parallel()
	runInBubble(t, "no request beyond the limit in any 24 hours", func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: time.Hour})
		e.configure("default", "token_request_limit", 10)
		live, none := 0, 0 // minutes with a live token, and without one
		for range 3*24*60 - 1 {
			resp, err := e.read("token")
			switch {
			case err == nil && e.sim.Valid(resp.Data["access_token"].(string)):
				live++
			default:
				e.wantCode(http.StatusServiceUnavailable,
					"token_request_limit of 10 requests in 24 hours is reached")(resp, err)
				none++
			}
			time.Sleep(time.Minute)
			if none%100 == 50 { // the limit survives a restart and a changed config
				e.restart()
				e.configure("default", "rotation_period", 45*60+none)
			}
		}
		at := e.attempts(0)
		for i := 10; i < len(at); i++ {
			if gap := at[i] - at[i-10]; gap < ledgerWindow {
				t.Errorf("requests %d to %d came within %s", i-10, i, gap)
			}
		}
		if len(at) != 30 {
			t.Errorf("%d requests in 3 days, want 30", len(at))
		}
		t.Logf("a live token for %d minutes, none for %d", live, none)
	})
	runInBubble(t, "the ledger is stored before the request is sent", func(t *testing.T) {
		e := configured(t, "verify", false, "token_request_limit", 3)
		e.sim.SetFault(fault("hang"))
		for want := range 3 {
			e.tick()
			synctest.Wait()
			e.restart() // while the request is under way
			e.want("status", "token_requests_24h", want+1)
		}
		e.sim.SetFault(autopaysim.Fault{})
		e.tick()
		limited := e.wantCode(http.StatusServiceUnavailable)
		limited(e.read("token"))
		limited(e.write("rotate", nil))
		limited(e.write("config", fields{"client_secret": "new"}))
		e.wantRequests(3)
		e.configure("default", "token_request_limit", 4) // raising it helps at once
		e.token("token")
	})
	runInBubble(t, "a raised limit ends a long wait", func(t *testing.T) {
		e := configured(t, "verify", false, "token_request_limit", 2)
		e.sim.SetFault(once(fault("hang")))
		// Half the limit is used, and the other half has to last for a day.
		e.wantCode(http.StatusServiceUnavailable, "the next attempt is at 2000-01-02T00:00:10Z")(e.read("token"))
		e.configure("default", "token_request_limit", 100)
		time.Sleep(time.Hour)
		e.token("token")
	})
	runInBubble(t, "no request is sent if the ledger can't be stored", func(t *testing.T) {
		e := configured(t, "verify", false)
		e.storage.failOn("put", "", errors.New("disk full:\n\x1b[31m"+strings.Repeat("x", 5000)))
		for range 3600 {
			resp, err := e.read("token")
			e.wantCode(http.StatusInternalServerError, "writing token/default to storage: disk full")(resp, err)
			wantFit(t, say(resp, err))
			time.Sleep(time.Second)
		}
		e.wantRequests(0)
		e.storage.heal()
		time.Sleep(time.Minute)
		e.token("token")
	})
}

func TestRule9StorageFailsAfterAutopayAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.storage.failPuts(func(n int64) bool { return n > 1 })
		token := e.token("token")["access_token"]
		for range 10 {
			e.tick()
			synctest.Wait()
			e.want("token", "access_token", token)
		}
		// An invalidation makes memory stale, but its token is newer than storage's.
		e.InvalidateKey(t.Context(), tokenPrefix+"default")
		e.want("token", "access_token", token)
		e.storage.heal()
		e.tick()
		e.tick() // while the first stores the entry
		synctest.Wait()
		e.restart()
		e.want("token", "access_token", token)
		e.wantRequests(1)
	})
}

// TestRule10NodesThatMayNotWriteNeverAsk sends every request to each kind of node. What
// a node may not do is read-only, bare, so that Vault passes it on to the active node.
func TestRule10NodesThatMayNotWriteNeverAsk(t *testing.T) {
	t.Parallel()
	const (
		primary   = consts.ReplicationPerformancePrimary
		standby   = consts.ReplicationPerformanceStandby
		secondary = consts.ReplicationPerformanceSecondary
		dr        = consts.ReplicationDRSecondary

		everyKey, noKey = "", "none" // prefixes in storage
	)
	memory := []string{"read status/live", "read status/none", "read config/live", "read token/live"}
	lists := []string{"read metrics", "list config/"}
	obtain := []string{"read token/none", "update rotate/live", "update rotate/none", "update rotate/young"}
	change := []string{"update config/live", "update config/new", "delete config/none"}
	onDR := []string{"read metrics", "list config/", "update rotate/young"}
	for name, test := range map[string]struct {
		state    consts.ReplicationState
		readOnly string     // prefix of the keys that storage refuses to write
		does     [][]string // the rest is passed on
		asks     bool       // once a refresh is due
	}{
		"active node":                        {primary, noKey, [][]string{memory, lists, obtain, change}, true},
		"performance standby":                {standby, everyKey, [][]string{memory}, false},
		"performance secondary":              {secondary, configPrefix, [][]string{memory, lists, obtain}, true},
		"standby of a performance secondary": {secondary | standby, everyKey, [][]string{memory}, false},
		"DR secondary":                       {dr, everyKey, [][]string{memory, onDR}, false},
		// It is not only storage that keeps such a node from asking.
		"standby that could write":      {standby, noKey, [][]string{memory}, false},
		"DR secondary that could write": {dr, noKey, [][]string{memory, onDR}, false},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Clients: map[string]string{testID: testSecret, "another": testSecret}})
			e.configure("live")
			e.configure("none", "verify", false)
			time.Sleep(time.Hour)
			e.configure("young")
			e.clean(t.Context())
			e.view.state.Store(uint32(test.state))
			e.storage.readOnly(test.readOnly)
			e.start()
			writes := e.storage.writes.Load()
			requests := slices.Concat(memory, lists, obtain, change)
			if test.readOnly == noKey && !test.asks {
				requests = requests[:len(requests)-1] // storage alone keeps such a node from deleting
			}
			for _, request := range requests {
				op, path, _ := strings.Cut(request, " ")
				var data fields
				if op == "update" && strings.HasPrefix(path, "config") {
					data = fields{"client_id": "another", "client_secret": testSecret}
				}
				asked := e.sim.Requests("")
				resp, err := e.do(t.Context(), logical.Operation(op), path, data)
				if slices.Contains(slices.Concat(test.does...), request) {
					e.ok(resp, err)
				} else if n := e.sim.Requests("") - asked; err != logical.ErrReadOnly || n > 0 { //nolint:errorlint // bare
					t.Errorf("%s: %q, %d requests; want read-only", request, say(resp, err), n)
				}
			}
			asked := e.sim.Requests("")
			time.Sleep(18*time.Hour + time.Second) // the timer, the tick and a read may ask now
			e.tick()
			_, _ = e.read("token/live")
			_ = e.credential("live").refresh().wait(t.Context())
			if asks := e.sim.Requests("") > asked; asks != test.asks {
				t.Errorf("when a refresh is due: asked %v, want %v", asks, test.asks)
			}
			if n := e.storage.writes.Load() - writes; test.readOnly == noKey && !test.asks && n > 0 {
				t.Errorf("%d writes", n)
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
		standby.want("token", "access_token", want)
		e.wantRequests(2)

		// The active node deletes the credential, configures it and deletes it again.
		for _, known := range []bool{false, true, false} {
			if known {
				e.configure("default")
			} else {
				e.forget("default")
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

// TestRule10ASecondaryLearnsOfChanges: the primary configures a new name, and changes
// the settings of a known one. The tick obtains the tokens that they need.
func TestRule10ASecondaryLearnsOfChanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetClient("second", testSecret)
		secondary := e.peer(consts.ReplicationPerformanceSecondary)
		synctest.Wait() // loading is over
		e.configure("oslo", "client_id", "second", "verify", false)
		e.configure("default", "client_id", "second", "verify", false)
		e.clean(t.Context())
		for _, name := range []string{"oslo", "default"} {
			secondary.InvalidateKey(t.Context(), "config/"+name)
		}
		for range 10 {
			secondary.minute()
		}
		e.wantRequests(3)
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
		active.sim.SetFault(once(delay(5 * time.Second)))
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = node.write("rotate", nil) })
		time.Sleep(time.Second)
		node.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
		active.storage.readOnly("")
		wg.Wait()
		active.storage.heal()
		node.want("token", "access_token", active.token("token")["access_token"]) // which storage took
		time.Sleep(2 * time.Minute)
		active.InvalidateKey(t.Context(), "token/default")
		active.ok(active.write("rotate", nil))
		node.InvalidateKey(t.Context(), "token/default")
		node.want("token", "access_token", active.token("token")["access_token"])
		node.view.state.Store(0)
		node.tick()
		synctest.Wait()
		active.InvalidateKey(t.Context(), "token/default")
		active.want("status", "token_requests_24h", active.sim.Requests(""))
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
		e.put("config/second", e.stored("config/first"))
		e.InvalidateKey(t.Context(), "config/second")
		for range 3 {
			e.minute()
		}
		e.wantRequests(2)
	})
}

// TestRule10AStandbyPassesOnWhatItCannotAnswer: the stored failure is the active
// node's, which may have a token by now.
func TestRule10AStandbyPassesOnWhatItCannotAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.sim.SetFault(retryAfter(503, "3600"))
		e.wantCode(http.StatusServiceUnavailable)(e.read("token"))
		standby := e.peer(consts.ReplicationPerformanceStandby)
		if _, err := standby.read("token"); err != logical.ErrReadOnly { //nolint:errorlint // it must be bare
			t.Errorf("got %v, want read-only", err)
		}
		standby.view.state.Store(uint32(consts.ReplicationPerformancePrimary)) // it becomes active
		standby.wantMetrics("after a read that was passed on", map[string]float64{"token_reads_total default error": 0})
	})
}
