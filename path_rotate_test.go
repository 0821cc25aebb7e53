package main

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestRotate(t *testing.T) {
	scenes(t, map[string]func(e *engine){
		"once a minute": func(e *engine) {
			old := e.token("token")["access_token"]
			for range 100 { // apps that see the same 401
				resp := e.ok(e.write("rotate", nil))
				if !slices.Equal(resp.Warnings, []string{"the token is less than 60 seconds old and was not replaced"}) {
					e.t.Fatal(resp.Warnings)
				}
			}
			e.wantRequests(1)
			time.Sleep(youngToken)
			for range 100 {
				data := e.ok(e.write("rotate", nil)).Data
				if _, shown := data["access_token"]; shown || data["last_vault_rotation"] != "2000-01-01T00:01:00Z" {
					e.t.Fatal(data)
				}
			}
			e.wantRequests(2)
			if e.token("token")["access_token"] == old {
				e.t.Error("the old token is served")
			}
		},
		"a failure keeps the token, and is repeated at next_attempt": func(e *engine) {
			old := e.token("token")["access_token"]
			time.Sleep(youngToken)
			e.sim.SetFault(once(status(503)))
			e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
			if resp := e.ok(e.read("token")); resp.Data["access_token"] != old || len(resp.Warnings) != 1 {
				e.t.Error(resp)
			}
			time.Sleep(2 * time.Second)
			e.wantRequests(3)
			if e.token("token")["access_token"] == old {
				e.t.Error("the rotation was not repeated")
			}
		},
		"it is not repeated after the same token": func(e *engine) {
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(fault("same_token"))
			for range 110 {
				if resp := e.ok(e.write("rotate", nil)); len(resp.Warnings) != 1 {
					e.t.Fatal(resp)
				}
			}
			e.wantRequests(2)
		},
		"it is answered with what it obtained": func(e *engine) {
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(once(delay(time.Second)))
			var wg sync.WaitGroup
			wg.Go(func() {
				resp := e.ok(e.write("rotate", nil))
				if at := resp.Data["last_vault_rotation"]; at != "2000-01-01T00:02:00Z" {
					e.t.Error(at)
				}
			})
			synctest.Wait()
			wg.Go(func() { _, _ = e.write("config", fields{"audience": "x", "verify": false}) })
			wg.Wait()
		},
		// The request stays in the ledger, but brought no token, so the next rotate is not
		// told that one was obtained a moment ago.
		"after a timeout": func(e *engine) {
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(fault("hang"))
			for range 2 {
				e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
				time.Sleep(rotateDelay)
			}
		},
	})
}
