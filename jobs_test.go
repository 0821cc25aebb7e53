package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestVerificationCountsThoughTheConfigIsNotStored(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.storage.failPuts(func(n int64) bool { return n > 1 })
		e.token("token") // unsaved
		e.storage.failOn("put", "config/", errors.New("disk full"))
		e.sim.SetClient("second", testSecret)
		for range 5 {
			if _, err := e.write("config", map[string]any{"client_id": "second"}); err == nil {
				t.Fatal("the config was stored")
			}
		}
		e.storage.heal()
		e.tick()
		synctest.Wait()
		if e.sim.Requests("") != e.status("status")["token_requests_24h"] {
			t.Errorf("%d requests, %v in the ledger", e.sim.Requests(""), e.status("status")["token_requests_24h"])
		}
	})
}

// TestAFailedVerificationIsNotRepeatedAtOnce: Vault's clients repeat a write that was
// answered with a 5xx.
func TestAFailedVerificationIsNotRepeatedAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503})
		for range 3 {
			e.wantCode(http.StatusServiceUnavailable)(e.write("config", map[string]any{"client_secret": "x"}))
			time.Sleep(time.Second)
		}
		e.wantRequests(2)
		e.sim.SetFault(autopaysim.Fault{})
		if resp, err := e.write("config", map[string]any{"client_id": "unknown"}); code(resp, err) != http.StatusBadRequest { // other settings
			t.Fatal(resp, err)
		}
		time.Sleep(verifySpacing)
		e.sim.SetClient(testID, "x")
		if resp, err := e.write("config", map[string]any{"client_secret": "x"}); err != nil || resp.IsError() {
			t.Fatal(resp, err)
		}
	})
}

func TestFailedDeleteCanBeRepeated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.storage.failOn("delete", "token/", errors.New("disk full"))
		_, err := e.delete("config")
		if err == nil {
			t.Error("no error")
		}
		e.storage.heal()
		_, err = e.delete("config")
		got, _ := e.storage.Get(t.Context(), "token/default")
		if err != nil || got != nil {
			t.Error("token stays in storage after a 204", err)
		}
	})
}

// TestFailedWritesMayHaveBeenDone loses the answer of storage: memory must show
// what storage holds.
func TestFailedWritesMayHaveBeenDone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		op   logical.Operation
		data map[string]any
		key  string // whose answer is lost
		path string // of the read that shows it
		want map[string]any
	}{
		"config, verify=false": {logical.UpdateOperation, map[string]any{"client_id": "b", "verify": false}, "config/", "config", map[string]any{"client_id": "b"}},
		"config, verified":     {logical.UpdateOperation, map[string]any{"client_id": "b"}, "config/", "config", map[string]any{"client_id": "b"}},
		"delete, the token":    {logical.DeleteOperation, nil, "token/", "status", map[string]any{"state": "pending"}},
		"delete, the config":   {logical.DeleteOperation, nil, "config/", "status", nil},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("b", testSecret)
			e.configure("default")
			e.storage.after(func(op, key string) error {
				if op != "get" && strings.HasPrefix(key, test.key) {
					return errors.New("the answer is lost")
				}
				return nil
			})
			e.wantCode(http.StatusInternalServerError)(e.do(t.Context(), test.op, "config", test.data))
			e.storage.heal()
			resp, err := e.read(test.path)
			if err != nil || (resp == nil) != (test.want == nil) {
				t.Fatal(resp, err)
			}
			for field, want := range test.want {
				if got := resp.Data[field]; got != want {
					t.Errorf("%s is %v, want %v", field, got, want)
				}
			}
		})
	}
}

// TestDamageStaysAfterARefusedWrite: a refused creation over a damaged config does
// not hide the damage.
func TestDamageStaysAfterARefusedWrite(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	e.put("config/default", "{")
	data := withSecret()
	data["client_secret"] = "wrong"
	e.wantCode(http.StatusBadRequest)(e.write("config", data))
	e.wantCode(http.StatusInternalServerError)(e.read("status"))
}

func TestLedgerOutlivesFailedCreations(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
		for i := range 10 {
			resp, err := e.write("config", map[string]any{"client_id": testID, "client_secret": fmt.Sprint("s", i), "token_request_limit": 3})
			if code(resp, err) != http.StatusServiceUnavailable {
				t.Error(resp, err)
			}
		}
		e.wantRequests(3)
	})
}

// TestUnverifiedWriteKeepsWhatIsUnsaved: the removal of a request from the ledger
// could not be stored. It is stored later, though the settings have changed since.
func TestUnverifiedWriteKeepsWhatIsUnsaved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(retryAfter(503, "3600"))
		e.storage.failPuts(func(n int64) bool { return n == 2 }) // the first is the ledger with the request
		e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
		e.storage.heal()
		e.configure("default", "request_timeout", 20, "verify", false)
		e.minute()
		e.restart()
		if used := e.status("status")["token_requests_24h"]; used != 1 {
			t.Errorf("%v requests in the ledger, want 1", used)
		}
	})
}

// TestUnsentRequestIsRemovedFromTheLedger: the ledger was stored, but the answer of
// storage was lost, so the request was not sent.
func TestUnsentRequestIsRemovedFromTheLedger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: "status", Status: 401})
		time.Sleep(18*time.Hour + 10*time.Second) // refused: the next attempt is in 5 minutes
		e.storage.after(func(string, string) error { return errors.New("the answer is lost") })
		e.wantCode(http.StatusInternalServerError)(e.write("rotate", nil))
		e.storage.heal()
		e.minute()
		e.restart()
		if used := e.status("status")["token_requests_24h"]; used != 1 {
			t.Errorf("%v requests in the ledger, want 1", used)
		}
	})
}

// TestStorageErrorsAreCleaned: what storage says is shown to readers and stored with the
// failure, so it must be fit for both.
func TestStorageErrorsAreCleaned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.storage.failOn("put", "token/", errors.New("disk full:\n\x1b[31m"+strings.Repeat("x", 5000)))
		resp, err := e.read("token")
		e.wantCode(http.StatusInternalServerError)(resp, err)
		if text := say(resp, err); strings.ContainsFunc(text, notPrintable) || len(text) > 500 {
			t.Errorf("not fit to show: %.200q", text)
		}
		e.storage.heal()
		e.sim.SetFault(retryAfter(503, "3600"))
		time.Sleep(time.Minute)
		e.restart()
		_, _ = e.read("status")
		if strings.Contains(e.logs.String(), "damaged") {
			t.Error("the entry that the engine wrote is damaged")
		}
	})
}

// TestADeleteLeavesNothing: not even the ledger of a creation that failed, also after
// a restart.
func TestADeleteLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"at once": false, "after a restart": true} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
			_, _ = e.write("config/x", withSecret())
			if e.stored("token/x") == "" {
				t.Error("the request is not in the ledger")
			}
			if restart {
				e.restart()
			}
			if resp, err := e.delete("config/x"); resp != nil || err != nil || e.stored("token/x") != "" {
				t.Errorf("delete: %v %v; %s is left", resp, err, e.stored("token/x"))
			}
		})
	}
}

// TestADamagedCredentialCanBeDeleted is what the error about it says.
func TestADamagedCredentialCanBeDeleted(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	e.put("config/default", "?")
	if resp, err := e.delete("config"); resp != nil || err != nil {
		t.Errorf("delete: %v %v, want a 204", resp, err)
	}
	if resp, err := e.read("config"); resp != nil || err != nil || e.stored("config/default") != "" {
		t.Errorf("after the delete: %v %v, want a 404", resp, err)
	}
}

// TestAVerificationWaitsAsAutopayAsks: the same write is not sent again before the end
// of Retry-After, and says when it may be.
func TestAVerificationWaitsAsAutopayAsks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(retryAfter(429, "120"))
		want := "Autopay answered 429 Too Many Requests: temporarily_unavailable: simulated fault; nothing was changed; " +
			"the same write may be tried again at 2000-01-01T00:02:00Z; to store it without asking Autopay, set verify=false"
		for range 119 {
			resp, err := e.write("config", map[string]any{"client_secret": "x"})
			if e.wantCode(http.StatusServiceUnavailable)(resp, err); say(resp, err) != want {
				t.Fatalf("got %q, want %q", say(resp, err), want)
			}
			time.Sleep(time.Second)
		}
		e.wantRequests(2)
		time.Sleep(time.Second)
		_, _ = e.write("config", map[string]any{"client_secret": "x"})
		e.wantRequests(3)
	})
}
