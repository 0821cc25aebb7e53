package main

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestRotate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		old := e.token("token")["access_token"]
		for range 100 { // apps that see the same 401
			resp, err := e.write("rotate", nil)
			if err != nil || !slices.Equal(resp.Warnings, []string{"the token is less than 60 seconds old and was not replaced"}) {
				t.Fatal(resp, err)
			}
		}
		e.wantRequests(1)
		time.Sleep(youngToken)
		for range 100 {
			resp, err := e.write("rotate", nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, shown := resp.Data["access_token"]; shown || resp.Data["last_vault_rotation"] != "2000-01-01T00:01:00Z" {
				t.Fatal(resp.Data)
			}
		}
		e.wantRequests(2)
		now := e.token("token")["access_token"]
		if now == old {
			t.Error("the old token is served")
		}

		// A failed rotation keeps the token, and is repeated at next_attempt.
		time.Sleep(youngToken)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503, Times: 1})
		e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
		resp, err := e.read("token")
		if err != nil || resp.Data["access_token"] != now || len(resp.Warnings) != 1 {
			t.Error(resp, err)
		}
		time.Sleep(2 * time.Second)
		e.wantRequests(4)
		if e.token("token")["access_token"] == now {
			t.Error("the rotation was not repeated")
		}
	})
}

func TestRotateIsNotRepeatedAfterTheSameToken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
		for range 110 {
			resp, err := e.write("rotate", nil)
			if err != nil || len(resp.Warnings) != 1 {
				t.Fatal(resp, err)
			}
		}
		e.wantRequests(2)
	})
}

func TestRotateIsAnsweredWithWhatItObtained(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: time.Second, Times: 1})
		var wg sync.WaitGroup
		wg.Go(func() {
			resp, err := e.write("rotate", nil)
			if err != nil || resp.Data["last_vault_rotation"] != "2000-01-01T00:02:00Z" {
				t.Error(resp, err)
			}
		})
		synctest.Wait()
		wg.Go(func() { _, _ = e.write("config", map[string]any{"audience": "x", "verify": false}) })
		wg.Wait()
	})
}

// TestRotateAfterATimeout: the request stays in the ledger, but brought no token, so
// the next rotate is not told that one was obtained a moment ago.
func TestRotateAfterATimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
		for range 2 {
			e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
			time.Sleep(rotateDelay)
		}
	})
}

// TestRotateIsTheActiveNodes: a standby passes on the rotate of a young token too.
func TestRotateIsTheActiveNodes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		standby := configured(t).peer(consts.ReplicationPerformanceStandby)
		if _, err := standby.write("rotate", nil); err != logical.ErrReadOnly { //nolint:errorlint // it must be bare
			t.Errorf("got %v, want read-only, so that Vault passes it on", err)
		}
	})
}
