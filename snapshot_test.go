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
		hour = time.Hour
		life = 24 * hour
		due  = 18 * hour // three quarters of the life

		limited = "the token_request_limit of 1"
	)
	failed := func(at, wait time.Duration) func(*configEntry, *tokenEntry) {
		return func(_ *configEntry, e *tokenEntry) {
			e.Failure = &failedAttempt{Text: "down", Count: 1, Time: start2000.Add(at), NextAttempt: start2000.Add(at + wait)}
		}
	}
	limit1 := func(c *configEntry, _ *tokenEntry) { c.TokenRequestLimit = 1 }
	none := func(_ *configEntry, e *tokenEntry) { *e = tokenEntry{} }
	lifetime := func(d time.Duration) func(*configEntry, *tokenEntry) {
		return func(_ *configEntry, e *tokenEntry) { e.ExpireTime = start2000.Add(d) }
	}
	for name, test := range map[string]struct {
		change    func(c *configEntry, e *tokenEntry) // nil: nothing
		at        time.Duration                       // since the token was requested
		state     string
		live, due bool
		ttl       time.Duration
		blocked   string // by what; "": by nothing
	}{
		"new":                           {nil, 0, stateOK, true, false, due, ""},
		"after one and a half seconds":  {nil, 1500 * time.Millisecond, stateOK, true, false, due - time.Second, ""},
		"shortly before it is due":      {nil, due - 1, stateOK, true, false, minTTL, ""},
		"due":                           {nil, due, stateOK, true, true, minTTL, ""},
		"shortly before the margin":     {nil, life - 30*time.Second - 1, stateOK, true, true, minTTL, ""},
		"within the margin":             {nil, life - 30*time.Second, stateFailing, false, true, minTTL, ""},
		"5 minutes before their margin": {lifetime(5 * time.Minute), 285*time.Second - 1, stateOK, true, true, minTTL, ""},
		"5 minutes, within the margin":  {lifetime(5 * time.Minute), 285 * time.Second, stateFailing, false, true, minTTL, ""},

		"no token yet":           {none, 0, statePending, false, true, minTTL, ""},
		"of other settings":      {func(_ *configEntry, e *tokenEntry) { e.Generation = "h" }, 0, statePending, false, true, minTTL, ""},
		"no token, at the limit": {func(c *configEntry, e *tokenEntry) { c.TokenRequestLimit, *e = 1, tokenEntry{Requests: e.Requests} }, hour, stateFailing, false, false, minTTL, limited},

		"rotation_period of an hour":     {func(c *configEntry, _ *tokenEntry) { c.RotationPeriod = 3600 }, 0, stateOK, true, false, hour, ""},
		"rotation_period beyond 90 %":    {func(c *configEntry, _ *tokenEntry) { c.RotationPeriod = 23 * 3600 }, 0, stateOK, true, false, life * 9 / 10, ""},
		"three quarters, rounded down":   {lifetime(101 * time.Second), 0, stateOK, true, false, 75 * time.Second, ""},
		"a period shorter than any ttl":  {lifetime(4 * time.Second), 0, stateOK, true, false, minTTL, ""},
		"the same token was issued anew": {func(_ *configEntry, e *tokenEntry) { e.NextRotation = start2000.Add(21 * hour) }, 20 * hour, stateOK, true, false, hour, ""},

		"a failure":                  {failed(due, 30*time.Second), due, stateDegraded, true, false, 30 * time.Second, "down"},
		"a failure with a long wait": {failed(due, hour), due, stateDegraded, true, false, maxOutageTTL, "down"},
		"the wait is over":           {failed(due, hour), due + hour, stateDegraded, true, true, minTTL, ""},
		"a failure, and it is dead":  {failed(life, hour), life, stateFailing, false, false, maxOutageTTL, "down"},

		"at the limit, not due":      {limit1, hour, stateOK, true, false, due - hour, limited},
		"at the limit, due":          {limit1, due, stateDegraded, true, false, maxOutageTTL, limited},
		"due in a minute":            {func(c *configEntry, e *tokenEntry) { c.TokenRequestLimit, e.ExpireTime = 1, start2000.Add(hour) }, 44 * time.Minute, stateOK, true, false, time.Minute, limited},
		"the limit allows one again": {limit1, life, stateFailing, false, true, minTTL, ""},
		"the limit is not reached":   {func(c *configEntry, _ *tokenEntry) { c.TokenRequestLimit = 2 }, due, stateOK, true, true, minTTL, ""},
		"no limit":                   {func(c *configEntry, _ *tokenEntry) { c.TokenRequestLimit = 0 }, due, stateOK, true, true, minTTL, ""},

		"obtained by a clock a little ahead": {nil, -30 * time.Second, stateOK, true, false, due, ""},
		"obtained by a clock ahead":          {nil, -31 * time.Second, stateFailing, false, true, due, ""},
		"obtained by a clock ahead, failed":  {failed(-31*time.Second, time.Minute), -31 * time.Second, stateFailing, false, false, time.Minute, "down"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
				t.Errorf("state %s, want %s", got, test.state)
			}
			if got := s.live(now); got != test.live {
				t.Errorf("live: %v, want %v", got, test.live)
			}
			if got := s.due(now); got != test.due {
				t.Errorf("due: %v, want %v", got, test.due)
			}
			if got := s.ttl(now, s.problem(now)); got != test.ttl {
				t.Errorf("ttl %s, want %s", got, test.ttl)
			}
			blocked := ""
			if f := s.blocked(now); f != nil {
				blocked = f.Text
			}
			if (blocked == "") != (test.blocked == "") || !strings.HasPrefix(blocked, test.blocked) {
				t.Errorf("blocked by %q, want %q", blocked, test.blocked)
			}
		})
	}
}
