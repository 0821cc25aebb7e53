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
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		token := e.token("token")["access_token"]
		for range 5 {
			e.restart()
			if got := e.token("token")["access_token"]; got != token {
				t.Fatal("another token after a restart")
			}
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
	boom := errors.New("storage is gone")
	for name, test := range map[string]struct {
		failPut string // prefix of the keys that can't be written during the change
		code    int    // of the write
		old     bool   // the old token is served after a restart
	}{
		"the config can't be stored":        {configPrefix, http.StatusInternalServerError, true},
		"the process dies before the token": {tokenPrefix, http.StatusInternalServerError, true}, // the ledger comes first
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				e.sim.SetClient("second", testSecret)
				e.configure("default")
				token := e.token("token")["access_token"]
				e.storage.failOn("put", test.failPut, boom)
				resp, err := e.write("config", map[string]any{"client_id": "second"})
				if code(resp, err) != test.code {
					t.Errorf("the write got %v %v, want %d", resp, err, test.code)
				}
				e.storage.failWith(nil)
				e.restart()
				if got := e.token("token")["access_token"]; (got == token) != test.old {
					t.Errorf("old token served: %v, want %v", got == token, test.old)
				}
			})
		})
	}
	t.Run("a crash between config and token", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("second", testSecret)
			e.configure("default")
			old := e.token("token")["access_token"]
			puts := 0
			e.storage.failWith(func(op, key string) error {
				if op == "put" && strings.HasPrefix(key, tokenPrefix) {
					if puts++; puts == 2 { // the first is the ledger's
						return boom
					}
				}
				return nil
			})
			if resp, err := e.write("config", map[string]any{"client_id": "second"}); err != nil || resp.IsError() {
				t.Fatal(resp, err)
			}
			if e.token("token")["access_token"] == old {
				t.Error("the token of the old client is served")
			}
			e.wantRequests(2)
			e.restart() // what was in memory only is lost
			if e.token("token")["access_token"] == old {
				t.Error("the token of the old client is served after a crash")
			}
			e.wantRequests(3)
		})
	})
	t.Run("verify=false", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("second", testSecret)
			e.configure("default")
			old := e.token("token")["access_token"]
			e.configure("default", "client_id", "second", "verify", false)
			e.wantRequests(1)
			if state := e.status("status")["state"]; state != "pending" {
				t.Errorf("state %v, want pending", state)
			}
			if e.token("token")["access_token"] == old {
				t.Error("the token of the old client is served")
			}
			e.wantRequests(2)
		})
	})
}

func TestRule9StorageFailsAfterAutopayAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false)
		puts := 0
		e.storage.failWith(func(op, _ string) error {
			if op == "put" {
				if puts++; puts > 1 { // the ledger's entry is stored, nothing after it
					return errors.New("disk full")
				}
			}
			return nil
		})
		token := e.token("token")["access_token"]
		for range 10 {
			e.tick()
			synctest.Wait()
			if e.token("token")["access_token"] != token {
				t.Fatal("another token")
			}
		}
		// An invalidation makes memory stale, but what it has is newer.
		e.InvalidateKey(t.Context(), tokenPrefix+"default")
		if e.token("token")["access_token"] != token {
			t.Fatal("another token after an invalidation")
		}
		e.storage.failWith(nil)
		e.tick()
		synctest.Wait()
		e.restart()
		if e.token("token")["access_token"] != token {
			t.Fatal("the token was not stored at the next tick")
		}
		e.wantRequests(1)
	})
}

func TestRule9EverySecondWriteFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{BanAfter: 100})
		e.configure("default")
		puts := 0
		e.storage.failWith(func(op, _ string) error {
			if op == "put" {
				if puts++; puts%2 == 1 {
					return errors.New("input/output error")
				}
			}
			return nil
		})
		for range 10 * 24 * 60 {
			e.token("token")
			time.Sleep(time.Minute)
			e.tick()
			synctest.Wait()
		}
		// A due request is put off by a second when its ledger can't be stored.
		if got := e.sim.Requests(""); got < 13 || got > 15 {
			t.Errorf("%d requests in ten days, want 14", got)
		}
		e.storage.failWith(nil)
		e.tick()
		synctest.Wait()
		token := e.token("token")["access_token"]
		e.restart()
		if e.token("token")["access_token"] != token {
			t.Error("another token after storage has healed and a restart")
		}
	})
}
