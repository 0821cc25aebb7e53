package main

import (
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// steppedClock is a clock whose wall time can be set, while its monotonic time
// goes on as ever. The zero value is not set.
type steppedClock struct{ step atomic.Int64 }

func (c *steppedClock) set(step time.Duration) { c.step.Store(int64(step)) }

func (c *steppedClock) now() time.Time {
	now := time.Now()
	return clockReading(now.Add(time.Duration(c.step.Load())), now.Sub(start2000))
}

// clockReading makes the time that time.Now returns at a wall time and a monotonic
// reading. Package time has no way to do that, so this relies on how time.Time is
// built (time/time.go); TestClockReading checks it.
func clockReading(wall time.Time, monotonic time.Duration) time.Time {
	const hasMonotonic, nsecShift = 1 << 63, 30
	since1885 := wall.Unix() - time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	t := struct {
		wall uint64
		ext  int64
		loc  *time.Location
	}{hasMonotonic | uint64(since1885)<<nsecShift | uint64(wall.Nanosecond()), int64(monotonic), nil}
	return *(*time.Time)(unsafe.Pointer(&t))
}

func TestClockReading(t *testing.T) {
	t.Parallel()
	wall := start2000.Add(1234567 * time.Millisecond)
	a, b := clockReading(wall, time.Minute), clockReading(wall.Add(time.Hour), 3*time.Minute)
	if !a.Round(0).Equal(wall) || b.Round(0).Sub(a.Round(0)) != time.Hour || b.Sub(a) != 2*time.Minute {
		t.Errorf("%s and %s: time.Time is not built as this test believes", a, b)
	}
}

// TestClockSteps sets the wall clock forward and back under a live token. No dead
// token is served, and steps cost few requests.
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
		"a month back":                    {-720 * time.Hour, false, false, 2},
		"a month back, restarted":         {-720 * time.Hour, true, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				clock := e.stepClock()
				e.configure("default")
				time.Sleep(time.Minute)
				clock.set(test.step)
				if test.down {
					e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultRefused})
				}
				if test.restart {
					e.restart()
				}
				for range 24 * 60 {
					resp, err := e.read("token")
					switch {
					case err == nil && !e.sim.Valid(resp.Data["access_token"].(string)):
						t.Fatalf("a dead token after %s", time.Since(start2000))
					case err != nil && !test.down:
						t.Fatal(err)
					}
					e.minute()
				}
				if got := e.sim.Requests(""); got > test.most {
					t.Errorf("%d requests, want at most %d", got, test.most)
				}
			})
		})
	}
}

// stepClock restarts the engine with a clock that the test sets.
func (e *engine) stepClock() *steppedClock {
	e.t.Helper()
	clock := new(steppedClock)
	e.opts.now = clock.now
	e.restart()
	return clock
}

// TestClockForwardAndBack corrects a clock that was far ahead when the token was
// replaced.
func TestClockForwardAndBack(t *testing.T) {
	t.Parallel()
	for _, life := range []time.Duration{20 * time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{Lifetime: life})
				clock := e.stepClock()
				e.configure("default")
				time.Sleep(time.Minute)
				clock.set(25 * time.Hour)
				e.token("token")
				time.Sleep(10 * time.Minute)
				e.tick()
				clock.set(0)
				for range 30 * 60 {
					resp, err := e.read("token")
					if err == nil && !e.sim.Valid(resp.Data["access_token"].(string)) {
						t.Fatalf("a dead token after %s: %v", time.Since(start2000), resp.Data)
					}
					e.minute()
				}
			})
		})
	}
}

// TestAClockThatIsCorrected starts on a machine whose clock is two hours ahead.
// Once it is corrected, the next token shows the right times, and no life is longer.
func TestAClockThatIsCorrected(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		clock.set(2 * time.Hour)
		e.configure("default")
		time.Sleep(time.Minute)
		clock.set(0)
		time.Sleep(18 * time.Hour) // the refresh is due by the monotonic clock
		e.wantRequests(2)
		if got := e.token("token")["expire_time"]; got != "2000-01-02T18:00:00Z" {
			t.Errorf("expire_time %v, want 24 hours after the request", got)
		}
		time.Sleep(18 * time.Hour)
		e.wantRequests(3)
	})
}

// TestASuspendedMachine: the monotonic clock stops while the machine sleeps, and
// the wall clock goes on.
func TestASuspendedMachine(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: time.Hour})
		clock := e.stepClock()
		e.configure("default")
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503})
		clock.set(time.Hour)
		if resp, err := e.read("token"); err == nil {
			t.Errorf("a token of before an hour's sleep is served: %v", resp.Data)
		}
	})
}

// TestASetClockDoesNotOutliveTheLimit: the ledger of a clock that was a month
// ahead does not hold requests back for a month.
func TestASetClockDoesNotOutliveTheLimit(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"the same process": false, "restarted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				clock := e.stepClock()
				clock.set(720 * time.Hour)
				e.configure("default", "token_request_limit", 1)
				clock.set(0)
				if restart {
					e.restart()
				}
				e.configure("default", "request_timeout", 20) // rebuilds the snapshot
				time.Sleep(24*time.Hour + time.Minute)
				e.token("token")
				e.wantRequests(2)
			})
		})
	}
}
