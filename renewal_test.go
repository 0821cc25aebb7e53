package main

import (
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestAProofCountsThoughTheConfigCantBeStored(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false)
		puts := 0
		e.storage.failWith(func(op, _ string) error {
			if op == "put" {
				if puts++; puts > 1 {
					return errors.New("disk full")
				}
			}
			return nil
		})
		e.token("token") // unsaved
		e.storage.failOn("put", "config/", errors.New("disk full"))
		e.sim.SetClient("second", testSecret)
		for range 5 {
			if _, err := e.write("config", map[string]any{"client_id": "second"}); err == nil {
				t.Fatal("the config was stored")
			}
		}
		e.storage.failWith(nil)
		e.tick()
		synctest.Wait()
		if e.sim.Requests("") != e.status("status")["token_requests_24h"] {
			t.Errorf("%d requests, %v in the ledger", e.sim.Requests(""), e.status("status")["token_requests_24h"])
		}
	})
}

// Vault's clients repeat a write that was answered with a 5xx.
func TestAFailedProofIsNotRepeatedAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503})
		for range 3 {
			if _, err := e.write("config", map[string]any{"client_secret": "x"}); code(nil, err) != http.StatusServiceUnavailable {
				t.Fatal(err)
			}
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

func TestAHalfDoneDeleteCanBeRepeated(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		e.storage.failOn("delete", "token/", errors.New("disk full"))
		_, err := e.do(t.Context(), logical.DeleteOperation, "config", nil)
		if err == nil {
			t.Error("no error")
		}
		e.storage.failWith(nil)
		_, err = e.do(t.Context(), logical.DeleteOperation, "config", nil)
		got, _ := e.storage.Get(t.Context(), "token/default")
		if err != nil || got != nil {
			t.Error("token stays in storage after a 204", err)
		}
	})
}
