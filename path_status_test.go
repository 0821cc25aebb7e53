package main

import (
	"maps"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestStatus(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false, "token_request_limit", 2)
		want := fields{
			"state": "pending", "expire_time": nil, "last_vault_rotation": nil,
			"next_rotation": nil, "next_rotation_reason": "",
			"last_error": "", "last_error_time": nil, "consecutive_failures": 0, "next_attempt": nil,
			"token_requests_24h": 0, "token_request_limit": 2, "plugin_version": version,
		}
		check := func(change fields) {
			t.Helper()
			maps.Copy(want, change)
			if got := e.status("status"); !maps.Equal(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		}
		check(nil)
		e.token("token")
		check(fields{
			"state": "ok", "expire_time": "2000-01-02T00:00:00Z", "last_vault_rotation": "2000-01-01T00:00:00Z",
			"next_rotation": "2000-01-01T18:00:00Z", "next_rotation_reason": "lifetime", "token_requests_24h": 1,
		})
		e.sim.SetFault(status(401))
		time.Sleep(18*time.Hour + time.Second)
		check(fields{
			"state":           "degraded",
			"last_error":      "Autopay refused the credential (401): temporarily_unavailable: simulated fault",
			"last_error_time": "2000-01-01T18:00:00Z", "consecutive_failures": 1,
			"next_attempt": "2000-01-01T18:05:00Z", "next_rotation": "2000-01-01T18:05:00Z", "next_rotation_reason": "retry",
		})
		e.sim.SetFault(autopaysim.Fault{})
		time.Sleep(5 * time.Minute)
		check(fields{
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

func TestStatusLater(t *testing.T) {
	scenes(t, map[string]func(e *engine){
		"the wait after a failure ends before the limit allows another request": func(e *engine) {
			e.configure("default", "token_request_limit", 2)
			e.sim.SetFault(fault("hang"))
			time.Sleep(18*time.Hour + 11*time.Second)
			e.configure("default", "request_timeout", 20) // an hour's wait at most
			const next = "2000-01-02T00:00:00Z"
			e.want("status", "next_attempt", next, "next_rotation", next, "consecutive_failures", 1)
		},
		"the token is due before the limit allows another request": func(e *engine) {
			e.configure("default", "token_request_limit", 1)
			e.want("status", "state", "ok", "next_rotation", "2000-01-02T00:00:00Z", "next_rotation_reason", "retry")
		},
		"requests of a day ago are not counted, also if none was sent since": func(e *engine) {
			e.sim.SetLifetime(10 * 24 * time.Hour)
			time.Sleep(2 * time.Minute)
			e.ok(e.write("rotate", nil))
			time.Sleep(25 * time.Hour)
			e.want("status", "token_requests_24h", 0)
			e.wantMetrics("a day later", map[string]float64{"token_requests_24h default": 0})
		},
		// The backoff counts, and not the time at which the same token was due.
		"Autopay returns the same token, and then does not answer": func(e *engine) {
			e.sim.SetFault(fault("same_token"))
			time.Sleep(18*time.Hour + time.Second) // the next attempt is at 21:00
			e.sim.SetFault(retryAfter(503, "3600"))
			time.Sleep(3 * time.Hour)
			const next = "2000-01-01T22:00:00Z"
			e.want("status", "next_attempt", next, "next_rotation", next)
			e.want("token", "ttl", int64(60))
		},
	})
}
