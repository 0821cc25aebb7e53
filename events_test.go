package main

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// spyEvents is an event system that keeps what it is sent, and may fail or hang.
type spyEvents struct {
	mu   sync.Mutex // guards sent
	sent []string   // type, name, data_path and modified of each event
	all  string     // all that events held
	err  error
	hang bool
}

func (s *spyEvents) SendEvent(ctx context.Context, kind logical.EventType, event *logical.EventData) error {
	if s.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	words := []string{string(kind)}
	for _, key := range []string{"name", logical.EventMetadataDataPath, logical.EventMetadataModified} {
		words = append(words, event.Metadata.Fields[key].GetStringValue())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, strings.Join(words, " "))
	s.all += event.String()
	return s.err
}

// take returns the events since the last call.
func (s *spyEvents) take() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	slices.Sort(sent) // each is sent by a goroutine of its own
	return sent
}

func TestEvents(t *testing.T) {
	t.Parallel()
	for name, events := range map[string]*spyEvents{"taken": {}, "refused by the host": {err: errors.New("unknown service Events")}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
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
				expect("stored unproved", "autopay/config-write oslo config/oslo true")
				e.token("token/oslo")
				expect("first token", "autopay/rotate oslo token/oslo true")
				e.configure("oslo", "client_id", "other")
				expect("written again as it is")

				e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503, ClientID: "other", Times: 1})
				time.Sleep(18 * time.Hour)
				expect("one refresh failed, one went well",
					"autopay/rotate default token true", "autopay/rotate-fail oslo token/oslo false")
				time.Sleep(time.Second)
				expect("healed", "autopay/rotate oslo token/oslo true")

				e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401})
				time.Sleep(time.Minute)
				if _, err := e.write("rotate", nil); err == nil {
					t.Error("rotated")
				}
				expect("refused", "autopay/credential-refused default token false")
				e.token("token")
				expect("a read")
				e.configure("default", "rotation_period", 3600)
				expect("other settings, the failure as before", "autopay/config-write default config true")

				if _, err := e.do(t.Context(), logical.DeleteOperation, "config/oslo", nil); err != nil {
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
		})
	}
}

// TestEventsHoldUpNothing has an event system that never answers.
func TestEventsHoldUpNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.events = &spyEvents{hang: true}
		e.restart()
		begun := time.Now()
		e.configure("default")
		e.token("token")
		if took := time.Since(begun); took > 0 {
			t.Errorf("a write and a read waited %s for an event", took)
		}
		time.Sleep(18 * time.Hour)
		synctest.Wait()
		e.wantRequests(2)
		time.Sleep(11 * time.Second)
		before := runtime.NumGoroutine()
		time.Sleep(10 * 24 * time.Hour)
		if after := runtime.NumGoroutine(); after > before+5 {
			t.Errorf("%d goroutines, %d after ten days", before, after)
		}
		begun = time.Now()
		e.clean(t.Context())
		if took := time.Since(begun); took > 0 {
			t.Errorf("clean waited %s for an event", took)
		}
	})
}
