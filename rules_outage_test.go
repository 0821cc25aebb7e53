package main

import (
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

func TestRule5ALiveTokenIsServedWhileAutopayIsDown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		token := e.token("token")["access_token"]
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503})
		time.Sleep(18*time.Hour + time.Second)
		synctest.Wait()
		for range 6*3600 - 40 { // to the end of the token's life
			resp, err := e.read("token")
			if err != nil || resp.Data["access_token"] != token || len(resp.Warnings) != 1 {
				t.Fatalf("after %s: %v %v, want the old token and a warning", time.Since(start2000), resp, err)
			}
			if ttl := resp.Data["ttl"].(int64); ttl < 5 || ttl > 60 {
				t.Fatalf("ttl %d in an outage, want 5 to 60", ttl)
			}
			time.Sleep(time.Second)
		}
		e.want("status", "state", "degraded")
		time.Sleep(time.Minute)
		resp, err := e.read("token")
		if code(resp, err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "Autopay answered 503 Service Unavailable") || !strings.Contains(err.Error(), "; the next attempt is at 2000-01-02T00:") {
			t.Errorf("without a live token: %d %v", code(resp, err), err)
		}
		e.want("status", "state", "failing")
		// It recovers without a reader.
		e.sim.SetFault(autopaysim.Fault{})
		time.Sleep(time.Minute)
		if got := e.status("status"); got["state"] != "ok" || got["consecutive_failures"] != 0 || got["last_error"] != "" {
			t.Errorf("a minute after Autopay is back: %v", got)
		}
	})
}

func TestRule5Backoff(t *testing.T) {
	t.Parallel()
	const sec, minute = time.Second, time.Minute
	refused := [][2]time.Duration{{5 * minute, 5 * minute}, {585 * sec, 10 * minute}, {885 * sec, 15 * minute}}
	unusable := [][2]time.Duration{{5 * minute, 5 * minute}, {585 * sec, 10 * minute}, {20*minute - 15*sec, 20 * minute}, {40*minute - 15*sec, 40 * minute}, {time.Hour - 15*sec, time.Hour}}
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		code  int
		gaps  [][2]time.Duration // between the attempts, least and most; the last counts for all that follow
	}{
		"status 500": {
			autopaysim.Fault{Kind: "status", Status: 500},
			503,
			[][2]time.Duration{{sec, sec}, {1500 * time.Millisecond, 2 * sec}, {3 * sec, 4 * sec}, {6 * sec, 8 * sec}, {12 * sec, 16 * sec}, {24 * sec, 32 * sec}, {45 * sec, minute}},
		},
		"status 504":              {autopaysim.Fault{Kind: "lost"}, 503, [][2]time.Duration{{sec, sec}, {sec, minute}}},
		"status 429":              {autopaysim.Fault{Kind: "status", Status: 429}, 503, [][2]time.Duration{{minute, minute}, {105 * sec, 2 * minute}, {225 * sec, 4 * minute}, {285 * sec, 5 * minute}}},
		"status 408":              {autopaysim.Fault{Kind: "status", Status: 408}, 503, [][2]time.Duration{{sec, sec}, {sec, minute}}},
		"redirect":                {autopaysim.Fault{Kind: "redirect"}, 503, [][2]time.Duration{{sec, sec}, {sec, minute}}},
		"malformed":               {autopaysim.Fault{Kind: "malformed"}, 503, unusable},
		"no token":                {autopaysim.Fault{Kind: "no_token"}, 503, unusable},
		"HTML":                    {autopaysim.Fault{Kind: "html"}, 503, unusable},
		"half of an answer":       {autopaysim.Fault{Kind: "cut"}, 503, unusable},
		"an error in a 200":       {autopaysim.Fault{Kind: "oauth_error"}, 502, refused},
		"cut":                     {autopaysim.Fault{Kind: "close"}, 503, [][2]time.Duration{{sec, sec}, {sec, minute}}},
		"hang":                    {autopaysim.Fault{Kind: "hang"}, 503, [][2]time.Duration{{11 * sec, 11 * sec}, {11 * sec, 70 * sec}}},
		"status 400":              {autopaysim.Fault{Kind: "status", Status: 400}, 502, refused},
		"status 401":              {autopaysim.Fault{Kind: "status", Status: 401}, 502, refused},
		"status 403":              {autopaysim.Fault{Kind: "status", Status: 403}, 502, refused},
		"Retry-After 90 s":        {retryAfter(503, "90"), 503, [][2]time.Duration{{90 * sec, 90 * sec}}},
		"Retry-After 90.5 s":      {retryAfter(503, "90.5"), 503, [][2]time.Duration{{91 * sec, 91 * sec}}},
		"Retry-After 1 s":         {retryAfter(401, "1"), 502, refused},
		"Retry-After 10 h":        {retryAfter(429, "36000"), 503, [][2]time.Duration{{time.Hour, time.Hour}}},
		"Retry-After a date":      {retryAfter(503, "Sat, 01 Jan 2000 00:30:00 GMT"), 503, [][2]time.Duration{{30 * minute, 30 * minute}, {45 * sec, minute}}},
		"Retry-After in words":    {retryAfter(503, "soon"), 503, [][2]time.Duration{{sec, sec}, {sec, minute}}},
		"Retry-After in the past": {retryAfter(503, "Fri, 31 Dec 1999 00:30:00 GMT"), 503, [][2]time.Duration{{sec, sec}, {sec, minute}}},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t, "verify", false, "token_request_limit", 0)
			e.sim.SetFault(test.fault)
			resp, err := e.read("token")
			if code(resp, err) != test.code {
				t.Errorf("the first reader got %d %v, want %d", code(resp, err), err, test.code)
			}
			// Until the next attempt, every reader gets the last error at once.
			for range 100 {
				before := time.Now()
				resp, again := e.read("token")
				if code(resp, again) != test.code || again.Error() != err.Error() || time.Since(before) > 0 {
					t.Fatalf("before the next attempt, a reader got %d %v after %s, want %v", code(resp, again), again, time.Since(before), err)
				}
			}
			e.wantRequests(1)
			time.Sleep(2 * time.Hour)
			at := e.attempts(0)
			if len(at) < 2 {
				t.Fatalf("%d attempts in 2 hours", len(at))
			}
			for i := 1; i < len(at); i++ {
				gap, want := at[i]-at[i-1], test.gaps[min(i, len(test.gaps))-1]
				if gap < want[0] || gap > want[1] {
					t.Fatalf("attempt %d came %s after the one before, want %s to %s", i, gap, want[0], want[1])
				}
			}
		})
	}
}

// TestOutages prints what an outage of Autopay costs: how long the token takes to
// come back after Autopay has, and how many requests were sent in vain.
func TestOutages(t *testing.T) {
	t.Parallel()
	for _, fault := range []autopaysim.Fault{{Kind: "hang"}, {Kind: "refused"}, {Kind: "status", Status: 503}, {Kind: "status", Status: 403}, {Kind: "lost"}, {Kind: "html"}} {
		for _, length := range []time.Duration{10 * time.Minute, 3 * time.Hour, 48 * time.Hour, 7 * 24 * time.Hour} {
			name := fmt.Sprintf("%s %d for %s", fault.Kind, fault.Status, length)
			runInBubble(t, name, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{BanAfter: 100})
				e.configure("default")
				time.Sleep(18*time.Hour - time.Second)
				e.sim.SetFault(fault)
				spent := e.sim.Requests("")
				end := time.Now().Add(length)
				var wg sync.WaitGroup
				wg.Go(func() {
					for time.Now().Before(end) {
						if resp, err := e.do(t.Context(), logical.ReadOperation, "token", nil); err == nil && !e.sim.Valid(resp.Data["access_token"].(string)) {
							t.Error("a dead token")
						}
						time.Sleep(max(10*time.Second, length/5000))
					}
				})
				wg.Wait()
				e.sim.SetFault(autopaysim.Fault{})
				spent = e.sim.Requests("") - spent
				ledger := e.status("status")["token_requests_24h"].(int)
				for e.status("status")["state"] != "ok" {
					time.Sleep(time.Second)
				}
				back := time.Since(end)
				t.Logf("%-28s %5d requests, %3d in the ledger at its end, token back after %s", name, spent, ledger, back)
				most := 30 * time.Minute
				if length > 24*time.Hour {
					most = 90 * time.Minute
				}
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
		e.sim.SetFault(autopaysim.Fault{Kind: "status", Status: 401})
		time.Sleep(18*time.Hour + 10*time.Second)
		e.wantRequests(2) // refused: the next attempt is in 5 minutes
		e.sim.SetFault(autopaysim.Fault{Kind: "status", Status: 503})
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
		gaps  []time.Duration // between attempts; the last one is the shortest of all that follow
	}{
		"refused": {
			autopaysim.Fault{Kind: "status", Status: 401},
			[]time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute},
		},
		"Retry-After": {retryAfter(429, "1200"), []time.Duration{20 * time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				e.configure("default", "token_request_limit", 3)
				time.Sleep(2 * time.Minute)
				e.sim.SetFault(test.fault)
				for range 3600 {
					_, err := e.write("rotate", nil)
					if err == nil || !strings.Contains(err.Error(), "; the next attempt is at ") {
						t.Fatalf("got %v, want the last error and when rotate may try again", err)
					}
					time.Sleep(time.Second)
				}
				at := e.attempts(1)
				for i := 1; i < len(at); i++ {
					if gap, want := at[i]-at[i-1], test.gaps[min(i, len(test.gaps))-1]; gap < want || i < len(test.gaps) && gap > want+time.Second {
						t.Errorf("attempt %d came %s after the one before, want %s", i, gap, want)
					}
				}
				if len(at) < 3 {
					t.Errorf("%d attempts in an hour", len(at))
				}
			})
		})
	}
}

// TestBackoffAfterTheSameToken: Autopay answers with the same token again, and then
// not at all. The backoff counts, and not the time at which the same token was due.
func TestBackoffAfterTheSameToken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
		time.Sleep(18*time.Hour + time.Second) // the next attempt is at 21:00
		e.sim.SetFault(retryAfter(503, "3600"))
		time.Sleep(3 * time.Hour)
		if got := e.status("status"); got["next_attempt"] != "2000-01-01T22:00:00Z" || got["next_rotation"] != "2000-01-01T22:00:00Z" {
			t.Errorf("got %v, want the next attempt after an hour", got)
		}
		e.want("token", "ttl", int64(60))
	})
}

// TestTheSameTokenUntilItExpires: readers are without a token from the margin on, and
// no longer than that.
func TestTheSameTokenUntilItExpires(t *testing.T) {
	t.Parallel()
	for _, lifetime := range []time.Duration{time.Hour, 24 * time.Hour} {
		runInBubble(t, lifetime.String(), func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{Lifetime: lifetime})
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
			e.configure("default")
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
			if n := e.sim.Requests(""); without > 31 || n > 20 {
				t.Errorf("%d seconds without a token, %d requests", without, n)
			}
		})
	}
}
