package main

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// brake slows the requests of a hot loop down, so that a test of it ends.
type brake struct {
	http.RoundTripper
	n atomic.Int64
}

func (b *brake) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.n.Add(1) > 50 {
		select { // ends a hot loop
		case <-time.After(time.Hour):
		case <-r.Context().Done():
		}
	}
	return b.RoundTripper.RoundTrip(r)
}

// The machine sleeps during a long wait, and Autopay can't be reached when it wakes.
func TestWakingUpDuringABackoff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		b := &brake{RoundTripper: e.opts.transport}
		e.opts.transport = b
		clock := e.stepClock()
		e.configure("default")
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401})
		time.Sleep(18*time.Hour + time.Minute)
		clock.set(10 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultRefused})
		before := b.n.Load()
		e.tick()
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if got := b.n.Load() - before; got > 4 {
			t.Errorf("%d requests within 10 s of an outage", got)
		}
	})
}

// Several tokens within a second, short lives.
func TestManyTokensInASecond(t *testing.T) {
	bubble(t, func(t *testing.T) {
		clients := map[string]string{"a": "s", "b": "s", "c": "s", "d": "s", "e": "s"}
		e := newEngine(t, autopaysim.Options{Lifetime: time.Minute, Clients: clients})
		for id := range clients {
			e.configure("default", "client_id", id, "client_secret", "s")
		}
		e.token("token")
		e.wantRequests(5)
	})
}

// A leaked token can be rotated after a step back.
func TestRotateAfterAStepBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		e.configure("default")
		time.Sleep(10 * time.Minute)
		clock.set(-time.Hour)
		resp, err := e.write("rotate", nil)
		if err != nil || len(resp.Warnings) > 0 {
			t.Error(resp, err)
		}
		e.wantRequests(2)
	})
}

// A live token in memory survives a reload after a step back.
func TestReloadAfterAStepBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		e.configure("default")
		time.Sleep(10 * time.Minute)
		clock.set(-time.Hour)
		e.token("token")
		e.InvalidateKey(t.Context(), "token/default")
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultRefused})
		e.token("token")
		e.wantRequests(1)
	})
}

// The same token again, after a step back.
func TestTheSameTokenAfterAStepBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		e.configure("default")
		clock.set(-20 * time.Hour)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
		time.Sleep(18*time.Hour + time.Second)
		e.wantRequests(2)
		s := e.credential("default").snap.Load()
		if left, due := timeLeft(clock.now(), s.liveUntil), timeLeft(clock.now(), s.dueAt()); due > left {
			t.Errorf("due in %s, live for %s only", due, left)
		}
	})
}

func TestLimitAfterAStepBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		e.configure("default", "token_request_limit", 1)
		time.Sleep(time.Hour)
		clock.set(-10 * time.Hour)
		time.Sleep(24 * time.Hour)
		for range 60 {
			e.minute()
		}
		if got := strings.Count(e.logs.String(), "allows no request now"); got > 1 {
			t.Errorf("%d warnings in an hour", got)
		}
		if s := e.status("status"); s["last_error"] == "" || s["next_attempt"] == nil {
			t.Errorf("%v", s)
		}
	})
}

// Another node has damaged the config while a reader waits for its first token.
func TestConfigIsDamagedUnderAReader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false)
		_, _ = e.read("status")
		e.storage.putTakes.Store(int64(time.Second))
		c := e.credential("default")
		c.slot <- struct{}{} // a job of another request
		go func() {
			time.Sleep(time.Second)
			_ = e.storage.InmemStorage.Put(t.Context(), &logical.StorageEntry{Key: "config/default", Value: []byte("x")})
			e.InvalidateKey(t.Context(), "config/default")
			<-c.slot
		}()
		resp, err := e.read("token")
		if got := code(resp, err); got != 500 {
			t.Errorf("%d %s, want a 500 that says what is damaged", got, say(resp, err))
		}
	})
}

func TestLimitAfterAStepForward(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		e.configure("default")
		time.Sleep(time.Minute)
		clock.set(20 * time.Hour)
		if _, err := e.write("config", map[string]any{"token_request_limit": 1}); err != nil {
			t.Fatal(err)
		}
		calls := e.view.calls.Load()
		for range 60 {
			e.minute()
		}
		if got := e.view.calls.Load() - calls; got > 1000 {
			t.Errorf("%d calls back into Vault in an hour", got)
		}
		e.wantRequests(1)
	})
}

// What is stored after a step can be read again.
func TestFailureStoredAfterAStep(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{10 * time.Minute, -48 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			clock := e.stepClock()
			e.configure("default")
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401})
			time.Sleep(10 * time.Minute)
			_, _ = e.write("rotate", nil)
			clock.set(step)
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503, Times: 1})
			time.Sleep(10 * time.Second)
			_, _ = e.write("rotate", nil)
			e.sim.SetFault(autopaysim.Fault{})
			e.restart()
			_, _ = e.read("status")
			if strings.Contains(e.logs.String(), "damaged") {
				t.Errorf("%s: the entry that the engine wrote is damaged", step)
			}
		})
	}
}

// TestAWriteBeyondTheLimitLeavesMemoryAlone: it stored nothing, so nothing has to be read again.
func TestAWriteBeyondTheLimitLeavesMemoryAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "token_request_limit", 1)
		_, _ = e.write("config", map[string]any{"client_id": "other"})
		reads := e.storage.reads.Load()
		e.token("token")
		if got := e.storage.reads.Load(); got != reads {
			t.Errorf("%d reads of storage", got-reads)
		}
	})
}

// TestScheduleGapIsCheap: tokens that live for years.
func TestScheduleGapIsCheap(t *testing.T) {
	t.Parallel()
	schedule, err := parseSchedule("CRON_TZ=Europe/Oslo 0 0 29 2 *")
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	scheduleGap(schedule, start2000, maxLifetime*time.Second)
	if took := time.Since(begun); took > 500*time.Millisecond {
		t.Errorf("took %s", took)
	}
}
