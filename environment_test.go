package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestJobs start as long as the mount is there, which outlives the call that made it:
// Vault ends the context of Setup once it has been answered.
func TestJobs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		n := newEnvironment(ctx, &logical.BackendConfig{}, options{})
		end()
		ended := false
		started := n.spawn(func(ctx context.Context) {
			<-ctx.Done()
			time.Sleep(cleanTimeout / 2)
			ended = true
		})
		n.stop()
		if !started || !ended {
			t.Errorf("a job started: %v; stop waited for it: %v", started, ended)
		}
		if n.spawn(func(context.Context) {}) {
			t.Error("a job started after stop")
		}
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]error{"taken": nil, "refused by the host": errors.New("unknown service Events")} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("other", testSecret)
			events := &spyEvents{answer: func(context.Context) error { return answer }}
			e.events = events
			e.restart()
			expect := func(when string, want ...string) {
				t.Helper()
				if got := events.take(); !slices.Equal(got, want) {
					t.Errorf("%s: %q, want %q", when, got, want)
				}
			}
			e.configure("default")
			expect("configured", "autopay/config-write default config true", "autopay/rotate default token true")
			e.configure("oslo", "client_id", "other", "verify", false)
			expect("stored unverified", "autopay/config-write oslo config/oslo true")
			e.token("token/oslo")
			expect("first token", "autopay/rotate oslo token/oslo true")
			e.configure("oslo", "client_id", "other")
			expect("written again as it is")

			e.sim.SetFault(autopaysim.Fault{Kind: "status", Status: 503, ClientID: "other", Times: 1})
			time.Sleep(18 * time.Hour)
			expect("one refresh failed, one went well",
				"autopay/rotate default token true", "autopay/rotate-fail oslo token/oslo false")
			time.Sleep(time.Second)
			expect("recovered", "autopay/rotate oslo token/oslo true")

			e.sim.SetFault(status(401))
			time.Sleep(time.Minute)
			e.wantCode(502)(e.write("rotate", nil))
			expect("refused", "autopay/credential-refused default token false")
			e.token("token")
			expect("a read")
			e.configure("default", "rotation_period", 3600)
			expect("other settings, the same failure", "autopay/config-write default config true")

			e.forget("oslo")
			expect("deleted", "autopay/config-delete oslo config/oslo true")
			for text, want := range map[string]bool{
				testSecret: false, "sim.": false, `"operation"`: true, `"config-delete"`: true, `"path"`: true,
			} {
				if strings.Contains(events.all, text) != want {
					t.Errorf("the events hold %s: %v: %s", text, !want, events.all)
				}
			}
			logs := e.logs.String()
			if strings.Contains(logs, "unknown service") != (answer != nil) || strings.Contains(logs, "[ERROR] an event") {
				t.Errorf("logs:\n%s", logs)
			}
		})
	}
}

// TestEventsHoldUpNothing has an event system that never answers.
func TestEventsHoldUpNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		var hanging atomic.Int64
		e.events = &spyEvents{answer: func(ctx context.Context) error {
			hanging.Add(1)
			defer hanging.Add(-1)
			<-ctx.Done()
			return ctx.Err()
		}}
		e.restart()
		begun := time.Now()
		e.configure("default")
		e.token("token")
		wantWithin(t, begun, 0)
		time.Sleep(18 * time.Hour)
		synctest.Wait()
		e.wantRequests(2)
		time.Sleep(11 * time.Second)
		if n := hanging.Load(); n > 0 {
			t.Errorf("%d events are still being sent", n)
		}
		begun = time.Now()
		e.clean(t.Context())
		wantWithin(t, begun, 0)
	})
}
