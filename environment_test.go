package main

import (
	"context"
	"errors"
	"slices"
	"strings"
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

// TestCleanDoesNotWaitForHangingStorage: Vault holds a lock for every mount in the
// process while it calls Clean.
func TestCleanDoesNotWaitForHangingStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(2 * time.Minute)
		e.storage.slow("put", time.Minute) // heeds no context
		go func() { _, _ = e.write("rotate", nil) }()
		synctest.Wait()
		begun := time.Now()
		e.clean(t.Context())
		wantWithin(t, begun, cleanTimeout)
		time.Sleep(2 * time.Minute) // the write ends
	})
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for name, events := range map[string]*spyEvents{"taken": {}, "refused by the host": {err: errors.New("unknown service Events")}} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Clients: map[string]string{testID: testSecret, "other": testSecret}})
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

			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503, ClientID: "other", Times: 1})
			time.Sleep(18 * time.Hour)
			expect("one refresh failed, one went well",
				"autopay/rotate default token true", "autopay/rotate-fail oslo token/oslo false")
			time.Sleep(time.Second)
			expect("recovered", "autopay/rotate oslo token/oslo true")

			e.sim.SetFault(status(401))
			time.Sleep(time.Minute)
			if _, err := e.write("rotate", nil); err == nil {
				t.Error("rotated")
			}
			expect("refused", "autopay/credential-refused default token false")
			e.token("token")
			expect("a read")
			e.configure("default", "rotation_period", 3600)
			expect("other settings, the same failure", "autopay/config-write default config true")

			if _, err := e.delete("config/oslo"); err != nil {
				t.Error(err)
			}
			expect("deleted", "autopay/config-delete oslo config/oslo true")
			for _, secret := range []string{testSecret, "sim."} {
				if strings.Contains(events.all, secret) {
					t.Errorf("the events hold %q: %s", secret, events.all)
				}
			}
			if !strings.Contains(events.all, `"operation"`) || !strings.Contains(events.all, `"config-delete"`) || !strings.Contains(events.all, `"path"`) {
				t.Errorf("operation or path is missing: %s", events.all)
			}
			if logs := e.logs.String(); strings.Contains(logs, "unknown service") != (events.err != nil) || strings.Contains(logs, "[ERROR] an event") {
				t.Errorf("logs:\n%s", logs)
			}
		})
	}
}

// TestEventsHoldUpNothing has an event system that never answers.
func TestEventsHoldUpNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		events := &spyEvents{hang: true}
		e.events = events
		e.restart()
		begun := time.Now()
		e.configure("default")
		e.token("token")
		wantWithin(t, begun, 0)
		time.Sleep(18 * time.Hour)
		synctest.Wait()
		e.wantRequests(2)
		time.Sleep(11 * time.Second)
		if n := events.hanging.Load(); n > 0 {
			t.Errorf("%d events are still being sent", n)
		}
		begun = time.Now()
		e.clean(t.Context())
		wantWithin(t, begun, 0)
	})
}
