package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestRule1ReadsNeverWaitForAutopay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.token("token")
		synctest.Wait() // loading is over
		calls := func() [3]int64 {
			return [3]int64{e.storage.reads.Load(), e.storage.writes.Load(), e.view.calls.Load()}
		}
		before := calls()
		for range 1000 {
			e.token("token")
			e.token("token/default")
		}
		if after := calls(); after != before {
			t.Errorf("storage reads, writes and calls into Vault: %v, after 2000 reads of a token %v", before, after)
		}
		e.wantRequests(1)

		// While a refresh hangs, readers get the live token at once.
		e.sim.SetFault(once(delay(5 * time.Second)))
		time.Sleep(18 * time.Hour)
		synctest.Wait()
		begun, called := time.Now(), e.view.calls.Load()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() { e.want("token", "ttl", int64(5)) })
		}
		wg.Wait()
		wantWithin(t, begun, 0)
		if n := e.view.calls.Load() - called; n != 0 {
			t.Errorf("reads of a token that is due made %d calls into Vault", n)
		}
		time.Sleep(6 * time.Second) // a consumer comes back at ttl + 1 s
		e.want("token", "last_vault_rotation", "2000-01-01T18:00:00Z")
		e.wantRequests(2)
	})
}

func TestRule2OneRequestInFlight(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.wantRequests(0)
		e.sim.SetFault(once(delay(4 * time.Second)))

		// The first reader leaves after a second, which does not cancel the request.
		first, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		var wg sync.WaitGroup
		wg.Go(func() {
			e.wantCode(http.StatusServiceUnavailable)(e.do(first, logical.ReadOperation, "token", nil))
			wantWithin(t, start2000, time.Second)
		})
		synctest.Wait()
		for range 200 {
			wg.Go(func() { e.token("token") })
		}
		wg.Go(e.tick)
		wg.Go(func() { e.ok(e.write("rotate", nil)) })
		wg.Wait()
		e.wantRequests(1)
		if most := e.sim.Stats().MaxInFlight; most != 1 {
			t.Errorf("%d requests in flight at once", most)
		}
	})
}

func TestRule3RefreshBeforeExpiry(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		lifetime, lasts time.Duration
		readers         time.Duration // between two reads, with Vault's tick every minute; 0: the timer is on its own
		requests        int
	}{
		"24 h tokens, a reader every second": {day, day, time.Second, 2},
		"10 h tokens, a reader every second": {10 * time.Hour, day, time.Second, 4},
		"24 h tokens, no reader":             {day, day, 0, 2},
		"10 h tokens, no reader":             {10 * time.Hour, day, 0, 4},
		"10 min tokens, a reader per second": {10 * time.Minute, day, time.Second, 100}, // and the limit is reached
		"one hour tokens, a reader a second": {time.Hour, day, time.Second, 32},
		"30 quiet days":                      {day, 30*day + 2*time.Minute, time.Minute, 41},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Lifetime: test.lifetime})
			e.configure("default")
			step := cmp.Or(test.readers, time.Second)
			for at := time.Duration(0); at < test.lasts-step; at += step {
				if test.readers > 0 {
					resp, err := e.read("token")
					switch {
					case err == nil && !e.sim.Valid(resp.Data["access_token"].(string)):
						t.Fatalf("a dead token after %s", at)
					case err != nil && e.sim.Requests("") < 100:
						t.Fatalf("no token after %s: %v", at, err)
					}
				}
				time.Sleep(step - time.Nanosecond)
				synctest.Wait()
				time.Sleep(time.Nanosecond)
				if test.readers > 0 && (at+step)%time.Minute == 0 {
					e.tick()
				}
			}
			e.wantRequests(test.requests)
		})
	}
}

func TestRule3TickIsTheWatchdog(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault    string
		tainted  bool
		requests int
	}{
		"it obtains the first token":                        {"", false, 1},
		"it returns at once while Autopay hangs":            {"hang", false, 1},
		"it does nothing on a mount that is being disabled": {"", true, 0},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t, "verify", false)
			time.Sleep(time.Minute)
			e.wantRequests(0)
			e.view.tainted.Store(test.tainted)
			e.sim.SetFault(fault(test.fault))
			begun := time.Now()
			e.tick()
			wantWithin(t, begun, 0)
			time.Sleep(time.Second)
			e.wantRequests(test.requests)
		})
	}
}

func TestRule4OnlyLiveTokensAreHandedOut(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ lifetime, margin time.Duration }{
		"24 h":  {24 * time.Hour, 30 * time.Second},
		"5 min": {5 * time.Minute, 15 * time.Second},
		"20 s":  {20 * time.Second, time.Second},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Lifetime: test.lifetime})
			// The answer takes 300 ms: the lifetime counts from before the request.
			e.sim.SetFault(once(delay(300 * time.Millisecond)))
			e.configure("default")
			e.sim.SetFault(status(500))
			end := start2000.Add(test.lifetime - test.margin)
			time.Sleep(time.Until(end) - time.Nanosecond)
			e.token("token")
			time.Sleep(time.Nanosecond)
			e.wantCode(http.StatusServiceUnavailable)(e.read("token"))
		})
	}
	runInBubble(t, "dead on arrival", func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: 4 * time.Second})
		e.configure("default", "verify", false)
		e.sim.SetFault(delay(5 * time.Second))
		e.wantCode(http.StatusServiceUnavailable, "expired when it arrived")(e.read("token"))
		e.want("status", "token_requests_24h", 1)
	})
}

// TestManyColdCredentials: readers of many credentials without a token start a
// limited number of exchanges at a time, first come first served.
func TestManyColdCredentials(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const names, limit = 200, 32
		e := newEngine(t, autopaysim.Options{})
		for i := range names {
			e.configure(fmt.Sprintf("n%d", i), "verify", false)
		}
		e.sim.SetFault(delay(5 * time.Second))
		var wg sync.WaitGroup
		for i := range names {
			wg.Go(func() {
				e.token(fmt.Sprintf("token/n%d", i))
				if late := time.Since(start2000) - 5*time.Second*time.Duration(1+i/limit); late > 0 {
					t.Errorf("reader %d was answered %s too late", i, late)
				}
			})
			synctest.Wait() // one after the other
		}
		wg.Wait()
		if most := e.sim.Stats().MaxInFlight; most != limit {
			t.Errorf("%d exchanges at a time, want %d", most, limit)
		}
	})
}

// TestTimerThatGoesOffAtTheEndOfARefresh: the token is due again while the refresh that
// brought it has not quite ended. Nobody reads, and no tick comes.
func TestTimerThatGoesOffAtTheEndOfARefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: 20 * time.Second})
		e.configure("default", "token_request_limit", 0, "rotation_period", 5)
		e.sim.SetFault(delay(6 * time.Second))
		e.logs.takes.Store(int64(time.Millisecond)) // "new token" is logged once the timer is set
		time.Sleep(10 * time.Minute)
		if n := e.sim.Requests(""); n < 90 {
			t.Errorf("%d requests in ten minutes, want one every six seconds", n)
		}
	})
}

// TestADeadTokenIsReplacedWithoutReaders: a step back and a reload leave the next
// attempt after the end of the token.
func TestADeadTokenIsReplacedWithoutReaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		clock := e.stepClock()
		e.configure("default")
		e.sim.SetFault(once(fault("same_token")))
		time.Sleep(18*time.Hour + time.Second) // the next attempt is at 21:00
		clock.set(-10 * time.Hour)
		e.InvalidateKey(t.Context(), "config/default")
		e.token("token")
		for range 6 * 60 {
			e.minute()
		}
		if s := e.credential("default").snap.Load(); !s.live(clock.now()) {
			t.Errorf("the token has expired; the next one is due in %s", s.wait(clock.now()))
		}
	})
}
