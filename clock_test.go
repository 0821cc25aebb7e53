package main

import (
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
		most    int  // requests within the 24 h after it, one of them for the step
	}{
		"an hour forward":            {time.Hour, false, 3},
		"an hour forward, restarted": {time.Hour, true, 3},
		"an hour back":               {-time.Hour, false, 2},
		"an hour back, restarted":    {-time.Hour, true, 3},
		"a month forward":            {720 * time.Hour, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				var step time.Duration
				elapsed := func() time.Duration { return time.Since(start2000) }
				restart := func() {
					e.opts.now = steadyClock(func() time.Time { return time.Now().Add(step) }, elapsed)
					e.restart()
				}
				restart()
				e.configure("default")
				time.Sleep(time.Minute)
				step = test.step
				if test.restart {
					restart()
				}
				for range 24 * 60 {
					e.token("token") // live at Autopay
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
