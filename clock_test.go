package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestTwoClocks asks about a time that was an hour away, after the two clocks have
// moved on.
func TestTwoClocks(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wall, monotonic time.Duration
		before          bool
		left            time.Duration
	}{
		"no time has passed":        {0, 0, true, time.Hour},
		"half an hour":              {30 * time.Minute, 30 * time.Minute, true, 30 * time.Minute},
		"shortly before":            {time.Hour - 1, time.Hour - 1, true, 1},
		"an hour":                   {time.Hour, time.Hour, false, 0},
		"the wall clock set back":   {-time.Hour, time.Hour, false, 0},
		"the wall clock set ahead":  {time.Hour, time.Minute, false, 0},
		"set ahead by ten minutes":  {20 * time.Minute, 10 * time.Minute, true, 40 * time.Minute},
		"the machine slept an hour": {time.Hour, 0, false, 0},
	} {
		then := clockReading(start2000, time.Minute)
		now := clockReading(start2000.Add(test.wall), time.Minute+test.monotonic)
		for _, at := range []time.Time{then.Add(time.Hour), anchored(then, start2000.Add(time.Hour))} {
			if got := before(now, at); got != test.before {
				t.Errorf("%s: before: %v, want %v", name, got, test.before)
			}
			if got := timeLeft(now, at); got != test.left {
				t.Errorf("%s: %s left, want %s", name, got, test.left)
			}
		}
	}
	now := clockReading(start2000, time.Minute)
	for _, far := range []time.Time{{}, time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)} {
		if got := anchored(now, far); !got.Equal(far) {
			t.Errorf("%s became %s", far, got)
		}
	}
}

// TestWrongClock sets the wall clock, and later right again. A reader comes every minute.
// No dead token is served, and steps cost few requests.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	const hour, month, day = time.Hour, 720 * time.Hour, 24 * time.Hour
	for name, test := range map[string]struct {
		lifetime, step time.Duration
		right          time.Duration // after the step; 0: never
		restart        bool          // after the step
		down           bool          // Autopay is, from the step on
		most           int           // requests in the end
	}{
		"an hour forward":                  {day, hour, 0, false, false, 3},
		"an hour forward, restarted":       {day, hour, 0, true, false, 3},
		"an hour forward in an outage":     {day, hour, 0, false, true, 1},
		"an hour back":                     {day, -hour, 0, false, false, 2},
		"an hour back, restarted":          {day, -hour, 0, true, false, 3},
		"an hour back in an outage":        {day, -hour, 0, false, true, 1},
		"an hour back, restarted, in one":  {day, -hour, 0, true, true, 1},
		"a month forward":                  {day, month, 0, false, false, 3},
		"a month back":                     {day, -month, 0, false, false, 2},
		"a month back, restarted":          {day, -month, 0, true, false, 3},
		"a day forward and back":           {day, 25 * hour, 10 * time.Minute, false, false, 4},
		"the same with one-hour tokens":    {hour, 25 * hour, 10 * time.Minute, false, false, 42},
		"the same with 20 minutes' tokens": {20 * time.Minute, 25 * hour, 10 * time.Minute, false, false, 130},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Lifetime: test.lifetime})
			clock := e.stepClock()
			e.configure("default")
			time.Sleep(time.Minute)
			clock.set(test.step)
			if test.down {
				e.sim.SetFault(fault("refused"))
			}
			if test.restart {
				e.restart()
			}
			for minute := range 30 * 60 {
				if test.right > 0 && time.Duration(minute)*time.Minute == test.right {
					clock.set(0)
				}
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
	}
}

// brake slows the requests of a hot loop down, so that a test of it ends.
type brake struct {
	http.RoundTripper
	n atomic.Int64
}

func (b *brake) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.n.Add(1) > 50 {
		select {
		case <-time.After(time.Hour):
		case <-r.Context().Done():
		}
	}
	time.Sleep(300 * time.Millisecond)
	return b.RoundTripper.RoundTrip(r)
}

// TestClockIsSet sets the wall clock at a moment when something depends on it. before is
// how far ahead it is when the token is requested.
func TestClockIsSet(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	refused := fault("refused")
	sameToken := fault("same_token")
	oneReadDoesNotStorm := func(e *engine) {
		e.t.Helper()
		before := e.sim.Requests("")
		ctx, cancel := context.WithTimeout(e.t.Context(), 90*time.Second)
		defer cancel()
		resp, err := e.do(ctx, logical.ReadOperation, "token", nil)
		if n := e.sim.Requests("") - before; n > 1 || err != nil {
			e.t.Errorf("%v %v, %d requests", resp, err, n)
		}
	}
	for name, test := range map[string]struct {
		lifetime, before time.Duration
		then             func(e *engine, clock *steppedClock)
	}{
		"a clock that was ahead is corrected": {day, 2 * time.Hour, func(e *engine, clock *steppedClock) {
			clock.set(0)
			time.Sleep(18*time.Hour + time.Second) // the refresh is due by the monotonic clock
			e.wantRequests(2)
			e.want("token", "expire_time", "2000-01-02T18:00:00Z")
		}},
		"a request by a clock a month ahead does not count for long": {day, 30 * day, func(e *engine, clock *steppedClock) {
			e.configure("default", "token_request_limit", 1)
			clock.set(0)
			e.configure("default", "request_timeout", 20) // builds a new snapshot
			time.Sleep(24*time.Hour + time.Minute)
			e.token("token")
			e.wantRequests(2)
		}},
		"a restart drops a token from the future": {day, 2 * time.Hour, func(e *engine, clock *steppedClock) {
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(status(401))
			e.wantCode(http.StatusBadGateway)(e.write("rotate", nil))
			e.wantRequests(2)
			clock.set(0)
			e.restart()
			e.wantCode(http.StatusBadGateway)(e.read("token"))
			e.wantRequests(2)
		}},
		"storage is read again, which makes no life longer": {day, 0, func(e *engine, clock *steppedClock) {
			time.Sleep(10 * time.Hour)
			clock.set(-time.Hour)
			e.InvalidateKey(e.t.Context(), "token/default")
			e.sim.SetFault(refused)
			e.token("token")
			time.Sleep(14*time.Hour - 30*time.Second)
			if resp, err := e.read("token"); err == nil {
				e.t.Errorf("a token is served within its margin: %v", resp.Data)
			}
		}},
		"a read starts the refresh that the timer missed": {day, 0, func(e *engine, clock *steppedClock) {
			clock.set(19 * time.Hour)
			e.token("token")
			time.Sleep(time.Second)
			e.wantRequests(2)
		}},
		"a leaked token can be rotated after a step back": {day, 0, func(e *engine, clock *steppedClock) {
			time.Sleep(10 * time.Minute)
			clock.set(-time.Hour)
			if resp, err := e.write("rotate", nil); err != nil || len(resp.Warnings) > 0 {
				e.t.Error(resp, err)
			}
			e.wantRequests(2)
		}},
		"pauses do not grow with a step back": {day, 0, func(e *engine, clock *steppedClock) {
			e.InvalidateKey(e.t.Context(), "token/default")
			e.storage.failOn("get", "", errors.New("no quorum"))
			e.token("token")
			clock.set(-time.Hour)
			reads := e.storage.reads.Load()
			time.Sleep(failurePause)
			if e.token("token"); e.storage.reads.Load() == reads {
				e.t.Error("storage is left alone for longer")
			}
		}},
		"the limit is warned of once after a step back": {day, 0, func(e *engine, clock *steppedClock) {
			e.configure("default", "token_request_limit", 1)
			clock.set(-10 * time.Hour)
			time.Sleep(25 * time.Hour)
			for range 60 {
				e.minute()
			}
			if got := strings.Count(e.logs.String(), "allows no request now"); got > 1 {
				e.t.Errorf("%d warnings in an hour", got)
			}
			if s := e.status("status"); s["last_error"] == "" || s["next_attempt"] == nil {
				e.t.Errorf("%v", s)
			}
		}},
		"Autopay can't be reached when the machine wakes from a backoff": {day, 0, func(e *engine, clock *steppedClock) {
			e.sim.SetFault(status(401))
			time.Sleep(18*time.Hour + time.Minute)
			clock.set(10 * time.Minute)
			e.sim.SetFault(refused)
			b := e.opts.transport.(*brake)
			before := b.n.Load()
			e.tick()
			time.Sleep(10 * time.Second)
			if got := b.n.Load() - before; got < 1 || got > 4 {
				e.t.Errorf("%d requests within 10 s of an outage", got)
			}
		}},
		"the same token again after a step back": {day, 0, func(e *engine, clock *steppedClock) {
			clock.set(-20 * time.Hour)
			e.sim.SetFault(sameToken)
			time.Sleep(18*time.Hour + time.Second)
			e.wantRequests(2)
			s := e.credential("default").snap.Load()
			if left, due := timeLeft(clock.now(), s.liveUntil), timeLeft(clock.now(), s.dueAt()); due > left {
				e.t.Errorf("due in %s, live for %s only", due, left)
			}
		}},
		"the same token after a failover to a clock behind": {day, 2 * time.Minute, func(e *engine, clock *steppedClock) {
			clock.set(0)
			e.sim.SetFault(sameToken)
			e.restart()
			oneReadDoesNotStorm(e)
		}},
		"the same token within its margin after a step back": {10 * time.Minute, 0, func(e *engine, clock *steppedClock) {
			e.sim.SetFault(sameToken)
			clock.set(-time.Hour)
			time.Sleep(9*time.Minute + 31*time.Second)
			oneReadDoesNotStorm(e)
		}},
		"a standby's clock is behind the active node's": {day, 40 * time.Second, func(e *engine, _ *steppedClock) {
			standby := e.peer(consts.ReplicationPerformanceStandby, func(node *engine) { node.opts.now = nil })
			passedOn := 0
			for range 17 * 60 {
				if resp, err := standby.read("token"); err != nil {
					passedOn++
				} else if !e.sim.Valid(resp.Data["access_token"].(string)) {
					e.t.Fatal("a dead token")
				}
				time.Sleep(time.Minute)
			}
			if passedOn > 1 {
				e.t.Errorf("%d reads were passed on to the active node, want one", passedOn)
			}
		}},
		"what is stored after a step can be read again": {day, 10 * time.Minute, func(e *engine, clock *steppedClock) {
			for _, step := range []time.Duration{20 * time.Minute, -48 * time.Hour} {
				for _, status := range []int{401, 503} {
					time.Sleep(10 * time.Minute)
					e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: status})
					_, _ = e.write("rotate", nil)
					clock.set(step)
				}
				e.sim.SetFault(autopaysim.Fault{})
				e.restart()
				_, _ = e.read("status")
			}
			if strings.Contains(e.logs.String(), "damaged") {
				e.t.Error("the entry that the engine wrote is damaged")
			}
		}},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Lifetime: test.lifetime})
			e.opts.transport = &brake{RoundTripper: e.opts.transport}
			clock := e.stepClock()
			clock.set(test.before)
			e.configure("default")
			test.then(e, clock)
		})
	}
}
