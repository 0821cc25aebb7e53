package main

import (
	"strings"
	"testing"
	"time"
)

// TestSnapshot asks every question that a snapshot answers, about a token that was
// requested at the beginning of 2000.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	const (
		minute, hour = time.Minute, time.Hour
		life         = 24 * hour
		due          = 18 * hour // three quarters of the life

		early = -31 * time.Second // more than the margin before it was requested

		limited = "the token_request_limit of 1"

		ok, degraded, failing, pending = stateOK, stateDegraded, stateFailing, statePending
	)
	type change = func(c *configEntry, e *tokenEntry)
	failed := func(at, wait time.Duration) change {
		return func(_ *configEntry, e *tokenEntry) {
			e.Failure = &failedAttempt{Text: "down", Count: 1, Time: start2000.Add(at), NextAttempt: start2000.Add(at + wait)}
		}
	}
	limit := func(n int) change { return func(c *configEntry, _ *tokenEntry) { c.TokenRequestLimit = n } }
	period := func(p time.Duration) change {
		return func(c *configEntry, _ *tokenEntry) { c.RotationPeriod = int64(p / time.Second) }
	}
	lifetime := func(d time.Duration) change {
		return func(_ *configEntry, e *tokenEntry) { e.ExpireTime = start2000.Add(d) }
	}
	none := func(_ *configEntry, e *tokenEntry) { *e = tokenEntry{Requests: e.Requests} }
	others := func(_ *configEntry, e *tokenEntry) { e.Generation = "h" }
	reissued := func(_ *configEntry, e *tokenEntry) { e.NextRotation = start2000.Add(21 * hour) }
	both := func(a, b change) change { return func(c *configEntry, e *tokenEntry) { a(c, e); b(c, e) } }
	for name, test := range map[string]struct {
		change    change        // nil: nothing
		at        time.Duration // since the token was requested
		state     string
		live, due bool
		ttl       time.Duration
		blocked   string // by what; "": by nothing
	}{
		"new":                           {nil, 0, ok, true, false, due, ""},
		"after one and a half seconds":  {nil, 1500 * time.Millisecond, ok, true, false, due - time.Second, ""},
		"shortly before it is due":      {nil, due - 1, ok, true, false, minTTL, ""},
		"due":                           {nil, due, ok, true, true, minTTL, ""},
		"shortly before the margin":     {nil, life - 30*time.Second - 1, ok, true, true, minTTL, ""},
		"within the margin":             {nil, life - 30*time.Second, failing, false, true, minTTL, ""},
		"5 minutes before their margin": {lifetime(5 * time.Minute), 285*time.Second - 1, ok, true, true, minTTL, ""},
		"5 minutes, within the margin":  {lifetime(5 * time.Minute), 285 * time.Second, failing, false, true, minTTL, ""},

		"no token yet":           {none, 0, pending, false, true, minTTL, ""},
		"of other settings":      {others, 0, pending, false, true, minTTL, ""},
		"no token, at the limit": {both(limit(1), none), hour, failing, false, false, minTTL, limited},

		"rotation_period of an hour":     {period(hour), 0, ok, true, false, hour, ""},
		"rotation_period beyond 90 %":    {period(23 * hour), 0, ok, true, false, life * 9 / 10, ""},
		"three quarters, rounded down":   {lifetime(101 * time.Second), 0, ok, true, false, 75 * time.Second, ""},
		"a period shorter than any ttl":  {lifetime(4 * time.Second), 0, ok, true, false, minTTL, ""},
		"the same token was issued anew": {reissued, 20 * hour, ok, true, false, hour, ""},

		"a failure":                  {failed(due, 30*time.Second), due, degraded, true, false, 30 * time.Second, "down"},
		"a failure with a long wait": {failed(due, hour), due, degraded, true, false, maxOutageTTL, "down"},
		"the wait is over":           {failed(due, hour), due + hour, degraded, true, true, minTTL, ""},
		"a failure, and it is dead":  {failed(life, hour), life, failing, false, false, maxOutageTTL, "down"},

		"at the limit, not due":      {limit(1), hour, ok, true, false, due - hour, limited},
		"at the limit, due":          {limit(1), due, degraded, true, false, maxOutageTTL, limited},
		"due in a minute":            {both(limit(1), lifetime(hour)), 44 * minute, ok, true, false, minute, limited},
		"the limit allows one again": {limit(1), life, failing, false, true, minTTL, ""},
		"the limit is not reached":   {limit(2), due, ok, true, true, minTTL, ""},
		"no limit":                   {limit(0), due, ok, true, true, minTTL, ""},

		"obtained by a clock a little ahead": {nil, -30 * time.Second, ok, true, false, due, ""},
		"obtained by a clock ahead":          {nil, early, failing, false, true, due, ""},
		"obtained by a clock ahead, failed":  {failed(early, minute), early, failing, false, false, minute, "down"},
	} {
		config := &configEntry{Generation: "g", TokenRequestLimit: 100}
		entry := tokenEntry{
			Generation: "g", AccessToken: "token", LastVaultRotation: start2000, ExpireTime: start2000.Add(life),
			Requests: []int64{start2000.Unix()}, clock: start2000,
		}
		if test.change != nil {
			test.change(config, &entry)
		}
		now := start2000.Add(test.at)
		s := newSnapshot(config, entry, now)
		if got := s.state(now); got != test.state {
			t.Errorf("%s: state %s, want %s", name, got, test.state)
		}
		if live, due := s.live(now), s.due(now); live != test.live || due != test.due {
			t.Errorf("%s: live %v, due %v; want %v, %v", name, live, due, test.live, test.due)
		}
		if got := s.ttl(now, s.problem(now)); got != test.ttl {
			t.Errorf("%s: ttl %s, want %s", name, got, test.ttl)
		}
		blocked := ""
		if f := s.blocked(now); f != nil {
			blocked = f.Text
		}
		if (blocked == "") != (test.blocked == "") || !strings.HasPrefix(blocked, test.blocked) {
			t.Errorf("%s: blocked by %q, want %q", name, blocked, test.blocked)
		}
	}
}
