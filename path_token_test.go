package main

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestTokenShape(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		got := e.token("token")
		delete(got, "access_token")
		want := map[string]any{
			"token_type": "Bearer", "scope": "customer_club",
			"expire_time": "2000-01-02T00:00:00Z", "last_vault_rotation": "2000-01-01T00:00:00Z",
			"rotation_period": int64(64800), "ttl": int64(64800),
		}
		if !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		time.Sleep(1500 * time.Millisecond)
		if ttl := e.token("token")["ttl"]; ttl != int64(64799) { // 64798.5 rounded up
			t.Errorf("ttl %v after 1.5 s, want 64799", ttl)
		}
	})
}

// TestTokenDiffersInTTLAlone walks through every state of one token's life.
func TestTokenDiffersInTTLAlone(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []time.Duration{6 * time.Second, time.Minute, time.Hour, 24 * time.Hour, 30 * 24 * time.Hour} {
		t.Run(lifetime.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{Lifetime: lifetime})
				e.configure("default")
				first := e.token("token")
				e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401})
				states := map[any]bool{}
				for range 90 { // to 90 % of its life
					got := e.token("token")
					ttl, period := got["ttl"].(int64), got["rotation_period"].(int64)
					if ttl < 5 || ttl > max(period, 5) {
						t.Fatalf("ttl %d, want 5 to %d", ttl, period)
					}
					got["ttl"] = first["ttl"]
					if !maps.Equal(got, first) {
						t.Fatalf("got %v, want %v", got, first)
					}
					states[e.status("status")["state"]] = true
					time.Sleep(lifetime / 100)
					synctest.Wait()
				}
				if !states["ok"] || !states["degraded"] {
					t.Errorf("states seen: %v", states)
				}
			})
		})
	}
}

func TestTokenNotConfigured(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	for path, says := range map[string]string{
		"token":      "this credential is not configured; first write client_id and client_secret to config on this mount",
		"token/oslo": "write client_id and client_secret to config/oslo on this mount",
	} {
		if resp, err := e.read(path); code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), says) {
			t.Errorf("%s: %d %q", path, code(resp, err), say(resp, err))
		}
	}
	if resp, err := e.write("rotate", nil); code(resp, err) != http.StatusBadRequest {
		t.Errorf("rotate: %d", code(resp, err))
	}
	if resp, err := e.read("status"); resp != nil || err != nil {
		t.Errorf("status: %v %v, want a 404", resp, err)
	}
	// Unknown names cost nothing: no request, no write, nothing kept.
	for range 1000 {
		_, _ = e.read("token/oslo")
	}
	kept := 0
	e.credentials.Range(func(any, any) bool { kept++; return true })
	if kept != 0 || e.storage.writes.Load() != 0 {
		t.Errorf("%d credentials kept, %d writes", kept, e.storage.writes.Load())
	}
}

func TestTokenQueryNameIsHarmless(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	e.configure("default")
	e.configure("other")
	want := e.token("token")["access_token"]
	resp, err := e.do(t.Context(), logical.ReadOperation, "token", map[string]any{"name": "other"})
	if err != nil || resp.Data["access_token"] != want {
		t.Errorf("token?name=other reads another credential: %v %v", resp, err)
	}
}

func TestRotate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		old := e.token("token")["access_token"]
		for range 100 { // a hundred apps that see the same 401
			resp, err := e.write("rotate", nil)
			if err != nil || !slices.Equal(resp.Warnings, []string{"this token is younger than 60 s and was kept"}) {
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

		t.Log("a failed rotation keeps the token, and is tried again at next_attempt")
		time.Sleep(youngToken)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503, Times: 1})
		if resp, err := e.write("rotate", nil); code(resp, err) != http.StatusServiceUnavailable {
			t.Errorf("rotate: %d", code(resp, err))
		}
		resp, err := e.read("token")
		if err != nil || resp.Data["access_token"] != now || len(resp.Warnings) != 1 {
			t.Error(resp, err)
		}
		time.Sleep(2 * time.Second)
		e.wantRequests(4)
		if e.token("token")["access_token"] == now {
			t.Error("the rotation was not made up for")
		}
	})
}

func TestTheSameTokenAgainChangesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		first := e.token("token")
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
		time.Sleep(18*time.Hour + time.Second) // 6 h of life are left
		e.wantRequests(2)
		got := e.token("token")
		if got["ttl"] != int64(3*3600-1) {
			t.Errorf("ttl %v, want half the remaining life", got["ttl"])
		}
		got["ttl"] = first["ttl"]
		if !maps.Equal(got, first) {
			t.Errorf("got %v, want %v", got, first)
		}
		time.Sleep(3 * time.Hour)
		e.wantRequests(3)
		resp, err := e.write("rotate", nil)
		if err != nil || len(resp.Warnings) != 1 {
			t.Errorf("rotate: %v %v, want a warning that the token is the same", resp, err)
		}
	})
}

func TestStatus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false, "token_request_limit", 2)
		want := map[string]any{
			"state": "pending", "expire_time": nil, "last_vault_rotation": nil, "next_rotation": nil, "next_rotation_reason": "",
			"last_error": "", "last_error_time": nil, "consecutive_failures": 0, "next_attempt": nil,
			"token_requests_24h": 0, "token_request_limit": 2, "plugin_version": version,
		}
		check := func(change map[string]any) {
			t.Helper()
			maps.Copy(want, change)
			if got := e.status("status"); !maps.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		}
		check(nil)
		e.token("token")
		check(map[string]any{
			"state": "ok", "expire_time": "2000-01-02T00:00:00Z", "last_vault_rotation": "2000-01-01T00:00:00Z",
			"next_rotation": "2000-01-01T18:00:00Z", "next_rotation_reason": "lifetime", "token_requests_24h": 1,
		})
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401})
		time.Sleep(18*time.Hour + time.Second)
		check(map[string]any{
			"state": "degraded", "last_error": "Autopay refused the credential (401): temporarily_unavailable: simulated fault",
			"last_error_time": "2000-01-01T18:00:00Z", "consecutive_failures": 1,
			"next_attempt": "2000-01-01T18:05:00Z", "next_rotation": "2000-01-01T18:05:00Z", "next_rotation_reason": "retry",
		})
		e.sim.SetFault(autopaysim.Fault{})
		time.Sleep(5 * time.Minute)
		check(map[string]any{
			"state": "ok", "expire_time": "2000-01-02T18:05:00Z", "last_vault_rotation": "2000-01-01T18:05:00Z",
			"next_rotation": "2000-01-02T12:05:00Z", "next_rotation_reason": "lifetime", "token_requests_24h": 2,
			"last_error": "", "last_error_time": nil, "consecutive_failures": 0, "next_attempt": nil,
		})
		calls, reads := e.view.calls.Load(), e.storage.reads.Load()
		check(nil)
		if e.storage.reads.Load() != reads || e.view.calls.Load() != calls+1 { // the framework's own
			t.Errorf("a status costs %d storage reads and %d calls", e.storage.reads.Load()-reads, e.view.calls.Load()-calls)
		}
	})
}
