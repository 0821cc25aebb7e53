package main

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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
