package main

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestClockSteps sets the wall clock forward and back under a live token. In
// the bubble, time.Now is the time that really goes by.
func TestClockSteps(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		step    time.Duration
		restart bool // after the step
		down    bool // Autopay is, from the step on: no token is served beyond its life
		most    int  // requests within the 24 h after it, one of them for the step
	}{
		"an hour forward":                 {time.Hour, false, false, 3},
		"an hour forward, restarted":      {time.Hour, true, false, 3},
		"an hour forward in an outage":    {time.Hour, false, true, 1},
		"an hour back":                    {-time.Hour, false, false, 2},
		"an hour back, restarted":         {-time.Hour, true, false, 3},
		"an hour back in an outage":       {-time.Hour, false, true, 1},
		"an hour back, restarted, in one": {-time.Hour, true, true, 1},
		"a month forward":                 {720 * time.Hour, false, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				var step atomic.Int64
				elapsed := func() time.Duration { return time.Since(start2000) }
				restart := func() {
					e.opts.now = steadyClock(func() time.Time { return time.Now().Add(time.Duration(step.Load())) }, elapsed)
					e.restart()
				}
				restart()
				e.configure("default")
				time.Sleep(time.Minute)
				step.Store(int64(test.step))
				if test.down {
					e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultRefused})
				}
				if test.restart {
					restart()
				}
				for range 24 * 60 {
					resp, err := e.read("token")
					switch {
					case err == nil && !e.sim.Valid(resp.Data["access_token"].(string)):
						t.Fatalf("a dead token after %s", time.Since(start2000))
					case err != nil && !test.down:
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
					e.tick()
					synctest.Wait()
				}
				if got := e.sim.Requests(""); got > test.most {
					t.Errorf("%d requests, want at most %d", got, test.most)
				}
			})
		})
	}
}

func TestClockForwardAndBack(t *testing.T) {
	t.Parallel()
	for _, life := range []time.Duration{20 * time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{Lifetime: life})
				var step atomic.Int64
				e.opts.now = steadyClock(func() time.Time { return time.Now().Add(time.Duration(step.Load())) }, func() time.Duration { return time.Since(start2000) })
				e.restart()
				e.configure("default")
				time.Sleep(time.Minute)
				step.Store(int64(25 * time.Hour))
				e.token("token")
				time.Sleep(10 * time.Minute)
				e.tick()
				synctest.Wait()
				step.Store(0)
				for range 30 * 60 {
					resp, err := e.read("token")
					if err == nil && !e.sim.Valid(resp.Data["access_token"].(string)) {
						t.Fatalf("a dead token after %s: %v", time.Since(start2000), resp.Data)
					}
					time.Sleep(time.Minute)
					e.tick()
					synctest.Wait()
				}
			})
		})
	}
}
