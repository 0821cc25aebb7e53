package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"strings"
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

func TestRule5ALiveTokenIsServedWhileAutopayIsDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		token := e.token("token")["access_token"]
		e.sim.SetFault(status(503))
		time.Sleep(18*time.Hour + time.Second)
		synctest.Wait()
		for range 6*3600 - 40 { // to the end of the token's life
			resp := e.ok(e.read("token"))
			if resp.Data["access_token"] != token || len(resp.Warnings) != 1 {
				t.Fatalf("after %s: %v, want the old token and a warning", time.Since(start2000), resp)
			}
			if ttl := resp.Data["ttl"].(int64); ttl < 5 || ttl > 60 {
				t.Fatalf("ttl %d in an outage, want 5 to 60", ttl)
			}
			time.Sleep(time.Second)
		}
		e.want("status", "state", "degraded")
		time.Sleep(time.Minute)
		e.wantCode(http.StatusServiceUnavailable, "Autopay answered 503 Service Unavailable",
			"; the next attempt is at 2000-01-02T00:")(e.read("token"))
		e.want("status", "state", "failing")
		// It recovers without a reader.
		e.sim.SetFault(autopaysim.Fault{})
		time.Sleep(time.Minute)
		e.want("status", "state", "ok", "consecutive_failures", 0, "last_error", "")
	})
}

func TestRule5Backoff(t *testing.T) {
	t.Parallel()
	const sec, minute = time.Second, time.Minute
	// doubled is the least wait before a third attempt, after a first wait of 5 minutes.
	const doubled = 585 * sec
	for name, test := range map[string]struct {
		fault              autopaysim.Fault
		code               int
		used               int           // requests in the ledger afterwards (rule 8)
		first, least, most time.Duration // between the first two attempts, and between two others
	}{
		"status 204":         {status(204), 502, 1, 5 * minute, doubled, 15 * minute}, // with an OAuth error
		"status 500":         {status(500), 503, 1, sec, sec, minute},
		"status 503":         {status(503), 503, 0, sec, sec, minute},
		"status 504":         {fault("lost"), 503, 1, sec, sec, minute},
		"status 429":         {status(429), 503, 0, minute, 105 * sec, 5 * minute},
		"status 408":         {status(408), 503, 0, sec, sec, minute},
		"redirect":           {fault("redirect"), 503, 0, sec, sec, minute},
		"malformed":          {fault("malformed"), 503, 1, 5 * minute, doubled, time.Hour},
		"no token":           {fault("no_token"), 503, 1, 5 * minute, doubled, time.Hour},
		"HTML":               {fault("html"), 503, 1, 5 * minute, doubled, time.Hour},
		"half of an answer":  {fault("cut"), 503, 1, 5 * minute, doubled, time.Hour},
		"an error in a 200":  {fault("oauth_error"), 502, 1, 5 * minute, doubled, 15 * minute},
		"cut":                {fault("close"), 503, 1, sec, sec, minute},
		"hang":               {fault("hang"), 503, 1, 4 * sec, 4 * sec, 63 * sec}, // the request_timeout and the wait
		"status 400":         {status(400), 502, 0, 5 * minute, doubled, 15 * minute},
		"status 401":         {status(401), 502, 0, 5 * minute, doubled, 15 * minute},
		"status 403":         {status(403), 502, 0, 5 * minute, doubled, 15 * minute},
		"Retry-After 90 s":   {retryAfter(503, "90"), 503, 0, 90 * sec, 90 * sec, 90 * sec},
		"Retry-After 1 s":    {retryAfter(401, "1"), 502, 0, 5 * minute, doubled, 15 * minute},
		"Retry-After a date": {retryAfter(503, "Sat, 01 Jan 2000 00:30:00 GMT"), 503, 0, 30 * minute, sec, minute},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t, "verify", false, "token_request_limit", 0, "request_timeout", 3)
			e.sim.SetFault(test.fault)
			resp, err := e.read("token")
			e.wantCode(test.code)(resp, err)
			// Until the next attempt, every reader gets the last error at once.
			begun, same := time.Now(), e.wantCode(test.code, say(resp, err))
			for range 100 {
				same(e.read("token"))
			}
			wantWithin(t, begun, 0)
			e.wantRequests(1)
			e.restart() // what was removed from the ledger has been stored
			e.want("status", "token_requests_24h", test.used)
			time.Sleep(2*time.Hour + time.Minute)
			at := e.attempts(0)
			if len(at) < 2 || at[1]-at[0] != test.first {
				t.Fatalf("attempts at %v, want the second after %s", at, test.first)
			}
			for i := 2; i < len(at); i++ {
				if gap := at[i] - at[i-1]; gap < test.least || gap > test.most {
					t.Fatalf("attempt %d came %s after the one before, want %s to %s", i, gap, test.least, test.most)
				}
			}
		})
	}
}

// TestOutages prints what an outage of Autopay costs: how long the token takes to
// come back after Autopay has, and how many requests were sent in vain.
func TestOutages(t *testing.T) {
	t.Parallel()
	for _, fault := range []autopaysim.Fault{
		fault("hang"), fault("refused"), status(503), status(403), fault("lost"), fault("html"),
	} {
		for length, most := range map[time.Duration]time.Duration{
			10 * time.Minute: 30 * time.Minute, 3 * time.Hour: 30 * time.Minute,
			48 * time.Hour: 90 * time.Minute, 7 * 24 * time.Hour: 90 * time.Minute,
		} {
			name := fmt.Sprintf("%s %d for %s", fault.Kind, fault.Status, length)
			runInBubble(t, name, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{BanAfter: 100})
				e.configure("default")
				time.Sleep(18*time.Hour - time.Second)
				e.sim.SetFault(fault)
				spent, end := e.sim.Requests(""), time.Now().Add(length)
				for time.Now().Before(end) {
					if resp, err := e.read("token"); err == nil && !e.sim.Valid(resp.Data["access_token"].(string)) {
						t.Error("a dead token")
					}
					time.Sleep(max(10*time.Second, length/5000))
				}
				e.sim.SetFault(autopaysim.Fault{})
				spent = e.sim.Requests("") - spent
				ledger := e.status("status")["token_requests_24h"].(int)
				for e.status("status")["state"] != "ok" {
					time.Sleep(time.Second)
				}
				back := time.Since(end)
				t.Logf("%-28s %5d requests, %3d in the ledger, token back after %s", name, spent, ledger, back)
				if back > most || ledger > 100 || e.sim.Banned("") {
					t.Errorf("token back after %s, want at most %s; %d in the ledger", back, most, ledger)
				}
			})
		}
	}
}

func TestRule5OperatorsDoNotShortenTheWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(status(401))
		time.Sleep(18*time.Hour + 10*time.Second)
		e.wantRequests(2) // refused: the next attempt is in 5 minutes
		e.sim.SetFault(status(503))
		e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
		e.wantRequests(3)
		time.Sleep(4 * time.Minute)
		e.wantRequests(3)
	})
}

// TestRotateBacksOff has an operator repeat rotate every second on a credential
// that Autopay refuses, whose refusals cost nothing of the limit.
func TestRotateBacksOff(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		gaps  []int // seconds between attempts; the last one is the shortest of all that follow
	}{
		"refused":     {status(401), []int{5, 10, 20, 40, 80, 160, 300}},
		"Retry-After": {retryAfter(429, "1200"), []int{1200}},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t, "token_request_limit", 3)
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(test.fault)
			for range 3 * 3600 { // so many failures that an unlimited doubling would overflow
				if text := say(e.write("rotate", nil)); !strings.Contains(text, "; the next attempt is at ") {
					t.Fatalf("got %q, want the last error and when rotate may try again", text)
				}
				time.Sleep(time.Second)
			}
			at := e.attempts(1)
			for i := 1; i < len(at); i++ {
				gap, want := at[i]-at[i-1], time.Duration(test.gaps[min(i, len(test.gaps))-1])*time.Second
				if gap < want || i < len(test.gaps) && gap > want+time.Second {
					t.Errorf("attempt %d came %s after the one before, want %s", i, gap, want)
				}
			}
			if len(at) < 3 {
				t.Errorf("%d attempts in three hours", len(at))
			}
		})
	}
}

// TestTheSameTokenUntilItExpires: readers are without a token from the margin on, and
// no longer than that.
func TestTheSameTokenUntilItExpires(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []time.Duration{time.Hour, 24 * time.Hour} {
		runInBubble(t, lifetime.String(), func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Lifetime: lifetime})
			inner := e.opts.transport
			e.opts.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				time.Sleep(100 * time.Millisecond) // so Autopay's times are later than ours
				return inner.RoundTrip(r)
			})
			e.restart()
			time.Sleep(700 * time.Millisecond)
			e.sim.SetFault(fault("same_token"))
			e.configure("default")
			time.Sleep(200 * time.Millisecond) // so readers come at a full second, as expire_time does
			without := 0
			for range int(lifetime/time.Second) + 300 {
				time.Sleep(time.Second)
				synctest.Wait()
				if resp, err := e.read("token"); err != nil {
					without++
				} else if !e.sim.Valid(resp.Data["access_token"].(string)) {
					t.Fatal("a dead token")
				}
			}
			if n := e.sim.Requests(""); without > 35 || n > 20 {
				t.Errorf("%d seconds without a token, %d requests", without, n)
			}
		})
	}
}
