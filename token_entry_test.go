package main

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDecodeToken changes one thing in an entry that the engine could have stored. What
// is damaged is reported, and only its ledger kept.
func TestDecodeToken(t *testing.T) {
	t.Parallel()
	const (
		all    = "token failure ledger"
		ledger = "ledger"
	)
	begun := start2000.Add(-time.Hour)
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	failed := func(change func(f *failedAttempt)) func(e *tokenEntry) {
		return func(e *tokenEntry) { change(e.Failure) }
	}
	for name, test := range map[string]struct {
		change func(e *tokenEntry)
		want   string // the parts that are kept
		whole  bool
	}{
		"as it was written":              {func(*tokenEntry) {}, all, true},
		"without a failure":              {func(e *tokenEntry) { e.Failure = nil }, "token ledger", true},
		"a ledger alone":                 {func(e *tokenEntry) { *e = tokenEntry{Requests: e.Requests} }, ledger, true},
		"a failure alone":                {func(e *tokenEntry) { *e = tokenEntry{Generation: "g", Requests: e.Requests, Failure: e.Failure} }, "failure ledger", true},
		"of other settings":              {func(e *tokenEntry) { e.Generation = "h" }, all, true},
		"lifetime of ten years":          {func(e *tokenEntry) { e.ExpireTime = begun.Add(maxLifetime * time.Second) }, all, true},
		"due again after the same token": {func(e *tokenEntry) { e.NextRotation = e.ExpireTime.Add(minTTL) }, all, true},
		"refused":                        {failed(func(f *failedAttempt) { f.Kind = refused }), all, true},
		"storage had failed":             {failed(func(f *failedAttempt) { f.Kind = storageFailed }), all, true},
		"waits for a day":                {failed(func(f *failedAttempt) { f.NextAttempt = f.Time.Add(24 * time.Hour) }), all, true},
		"failed in another zone":         {failed(func(f *failedAttempt) { f.Time = f.Time.In(time.FixedZone("", 7200)) }), all, true},

		"a token without settings":    {func(e *tokenEntry) { e.Generation, e.Failure = "", nil }, ledger, false},
		"a failure without settings":  {func(e *tokenEntry) { *e = tokenEntry{Requests: e.Requests, Failure: e.Failure} }, ledger, false},
		"times without a token":       {func(e *tokenEntry) { e.AccessToken = "" }, ledger, false},
		"a next rotation alone":       {func(e *tokenEntry) { *e = tokenEntry{Requests: e.Requests, NextRotation: far} }, ledger, false},
		"token with a newline":        {func(e *tokenEntry) { e.AccessToken = "a\r\nX-Evil: 1" }, ledger, false},
		"token with a space":          {func(e *tokenEntry) { e.AccessToken = "a b" }, ledger, false},
		"token not ASCII":             {func(e *tokenEntry) { e.AccessToken = "tökn" }, ledger, false},
		"token too long":              {func(e *tokenEntry) { e.AccessToken = strings.Repeat("x", maxTokenSize+1) }, ledger, false},
		"scope with a newline":        {func(e *tokenEntry) { e.Scope = "a\nb" }, ledger, false},
		"scope too long":              {func(e *tokenEntry) { e.Scope = strings.Repeat("x", maxTokenSize+1) }, ledger, false},
		"no expiry":                   {func(e *tokenEntry) { e.ExpireTime = time.Time{} }, ledger, false},
		"no beginning":                {func(e *tokenEntry) { e.LastVaultRotation = time.Time{} }, ledger, false},
		"expired before it began":     {func(e *tokenEntry) { e.ExpireTime = begun.Add(-time.Second) }, ledger, false},
		"lifetime over ten years":     {func(e *tokenEntry) { e.ExpireTime = begun.Add((maxLifetime + 1) * time.Second) }, ledger, false},
		"lifetime of 8000 years":      {func(e *tokenEntry) { e.ExpireTime = far }, ledger, false},
		"expiry in another zone":      {func(e *tokenEntry) { e.ExpireTime = e.ExpireTime.In(time.FixedZone("", 7200)) }, ledger, false},
		"beginning in another zone":   {func(e *tokenEntry) { e.LastVaultRotation = begun.In(time.FixedZone("", 7200)) }, ledger, false},
		"fraction of a second":        {func(e *tokenEntry) { e.ExpireTime = e.ExpireTime.Add(time.Millisecond) }, ledger, false},
		"next rotation after the end": {func(e *tokenEntry) { e.NextRotation = e.ExpireTime.Add(minTTL + 1) }, ledger, false},

		"failure of an unknown kind":   {failed(func(f *failedAttempt) { f.Kind = 418 }), ledger, false},
		"failure that never was one":   {failed(func(f *failedAttempt) { f.Count = 0 }), ledger, false},
		"fewer failures than none":     {failed(func(f *failedAttempt) { f.Count = -5 }), ledger, false}, // would shift by a negative number
		"more failures than there are": {failed(func(f *failedAttempt) { f.Count = math.MaxInt }), ledger, false},
		"waits until 9999":             {failed(func(f *failedAttempt) { f.NextAttempt = far }), ledger, false},
		"waits for more than a day":    {failed(func(f *failedAttempt) { f.NextAttempt = f.Time.Add(24*time.Hour + 1) }), ledger, false},
		"waits for no time":            {failed(func(f *failedAttempt) { f.NextAttempt = f.Time }), ledger, false},
		"failure in control codes":     {failed(func(f *failedAttempt) { f.Text = "a\x1b[31m\r\nb" }), ledger, false},
		"failure with a long story":    {failed(func(f *failedAttempt) { f.Text = strings.Repeat("x", maxFieldSize+1) }), ledger, false},
		"Retry-After of two hours":     {failed(func(f *failedAttempt) { f.RetryAfter = 7200 }), ledger, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entry := storedToken()
			test.change(&entry)
			stored, err := json.Marshal(entry)
			if err != nil {
				t.Fatal(err)
			}
			got, whole := decodeToken(stored, start2000)
			var parts []string
			if got.AccessToken != "" && got.AccessToken == entry.AccessToken && got.ExpireTime.Equal(entry.ExpireTime) && got.NextRotation.Equal(entry.NextRotation) {
				parts = append(parts, "token")
			}
			if got.Failure != nil && got.Failure.Text == entry.Failure.Text {
				parts = append(parts, "failure")
			}
			if slices.Equal(got.Requests, entry.Requests) {
				parts = append(parts, "ledger")
			}
			if kept := strings.Join(parts, " "); kept != test.want || whole != test.whole {
				t.Errorf("kept %q, whole %v; want %q, %v", kept, whole, test.want, test.whole)
			}
		})
	}
}

// TestDecodeDamagedJSON: what is not an entry at all is reported too.
func TestDecodeDamagedJSON(t *testing.T) {
	t.Parallel()
	for stored, requests := range map[string]int{
		``: 0, `{`: 0, `[]`: 0, `null`: 0, `{"requests":[946684800],"failure":"Autopay was down"}`: 1, `{"requests":[1,"2"]}`: 0, `{"requests":{}}`: 0,
		`{"requests":[946684800],"expire_time":946771200}`: 1,
	} {
		if got, whole := decodeToken([]byte(stored), start2000); whole != (stored == "null") || len(got.Requests) != requests || got.Generation != "" {
			t.Errorf("%s: %+v, whole %v", stored, got, whole)
		}
	}
}

// storedToken is an entry as the engine could have stored it an hour before 2000.
func storedToken() tokenEntry {
	begun := start2000.Add(-time.Hour)
	return tokenEntry{
		Generation: "g", AccessToken: "token", Scope: "scope",
		LastVaultRotation: begun, ExpireTime: begun.Add(24 * time.Hour), Requests: []int64{begun.Unix()},
		Failure: &failedAttempt{
			Text: "Autopay answered 503", Kind: unavailable, Count: 1,
			Time: start2000.Add(-time.Minute), NextAttempt: start2000.Add(-time.Minute + time.Second),
		},
	}
}

// TestLedger counts requests of the last 24 hours.
func TestLedger(t *testing.T) {
	t.Parallel()
	sent := func(at ...time.Duration) tokenEntry {
		var e tokenEntry
		for _, d := range at {
			e = e.withRequest(start2000.Add(d))
		}
		return e
	}
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		entry   tokenEntry
		at      time.Duration
		limit   int
		used    int
		allowed time.Duration // when limit allows the next; -1: it has always done so
	}{
		"none":                       {sent(), 0, 1, 0, -1},
		"below the limit":            {sent(0), 0, 2, 1, -1},
		"at the limit":               {sent(0, time.Hour), time.Hour, 2, 2, day},
		"above the limit":            {sent(0, time.Hour, 2*time.Hour), 2 * time.Hour, 2, 3, day + time.Hour},
		"no limit":                   {sent(0, time.Hour), time.Hour, 0, 2, -1},
		"shortly before it is a day": {sent(0), day - 1, 1, 1, day},
		"a day old":                  {sent(0), day, 1, 0, day},
		"rounded up":                 {sent(1), day, 1, 1, day + time.Second},
		"the last, taken back":       {sent(0, time.Hour).withoutLastRequest(), time.Hour, 1, 1, day},
		"by a clock that was ahead":  {sent(0, 240*time.Hour).withLedgerUntil(start2000.Add(time.Hour)), time.Hour, 1, 1, day + time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := test.entry.requestsAt(start2000.Add(test.at)); got != test.used {
				t.Errorf("%d requests, want %d", got, test.used)
			}
			until := test.entry.limitedUntil(test.limit)
			if until.IsZero() != (test.allowed < 0) || !until.IsZero() && !until.Equal(start2000.Add(test.allowed)) {
				t.Errorf("the next is allowed at %s, want %s after the start", until, test.allowed)
			}
		})
	}
	if got := sent(0, time.Hour, day+time.Hour).Requests; len(got) != 1 {
		t.Errorf("%d requests are kept, want the last 24 hours", len(got))
	}
}

// TestWithToken checks the entry after Autopay has answered with a token.
func TestWithToken(t *testing.T) {
	t.Parallel()
	const life, few = 24 * time.Hour, 6 * time.Second
	for name, test := range map[string]struct {
		token               string // Autopay's answer; the one in hand is "a"
		life                time.Duration
		at                  time.Duration
		obtained, ends, due time.Duration // since the token in hand; due 0: as scheduled
	}{
		"another token":                {"b", life, 18 * time.Hour, 18 * time.Hour, 18*time.Hour + life, 0},
		"another, a second later":      {"b", life, time.Second, time.Second, time.Second + life, 0},
		"another in the same second":   {"b", life, time.Second - 1, time.Second, life, 0},
		"another, by a clock set back": {"b", life, -time.Hour, -time.Hour, life - time.Hour, 0},
		"the same, live":               {"a", life, 18 * time.Hour, 0, life, 21 * time.Hour},
		"the same, close to its end":   {"a", life, life - 31*time.Second, 0, life, life - 31*time.Second + 31*time.Second/2},
		"the same, shortly before":     {"a", life, life - 30*time.Second - 1, 0, life, life - 30*time.Second - 1 + (30*time.Second+1)/2},
		"the same, reissued":           {"a", life, 34 * time.Hour, 0, 34*time.Hour + life, 34*time.Hour + life/2},
		"the same, of a few seconds":   {"a", few, 5 * time.Second, 0, few, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A clock in another zone: what is stored is UTC.
			begun, answer := start2000.In(time.FixedZone("", 7200)), tokenAnswer{"a", "s", test.life}
			entry := tokenEntry{Failure: &failedAttempt{Count: 1}}.withToken("g", answer, begun, begun)
			answer.accessToken = test.token
			now := begun.Add(test.at)
			entry = entry.withToken("g", answer, now, now)
			if entry.Failure != nil || !entry.valid() {
				t.Errorf("not an entry with a token: %+v", entry)
			}
			if got := entry.LastVaultRotation.Sub(start2000); got != test.obtained {
				t.Errorf("last_vault_rotation after %s, want %s", got, test.obtained)
			}
			if got := entry.ExpireTime.Sub(start2000); got != test.ends {
				t.Errorf("expire_time after %s, want %s", got, test.ends)
			}
			if got := entry.NextRotation; got.IsZero() != (test.due == 0) || test.due > 0 && got.Sub(start2000) != test.due {
				t.Errorf("next rotation at %s, want %s after the start", got, test.due)
			}
		})
	}
}

// TestWithFailedExchange checks the wait after an exchange that failed.
func TestWithFailedExchange(t *testing.T) {
	t.Parallel()
	const sec = time.Second
	for name, test := range map[string]struct {
		before      time.Duration // the wait after the last failure
		exchange    exchangeError
		used, limit int
		kind        failureKind
		least, most time.Duration
	}{
		"the first":               {0, exchangeError{noToken: true}, 0, 100, unavailable, sec, sec},
		"after a second":          {sec, exchangeError{noToken: true}, 0, 100, unavailable, 1500 * time.Millisecond, 2 * sec},
		"after a minute":          {45 * sec, exchangeError{noToken: true}, 0, 100, unavailable, 45 * sec, 60 * sec},
		"a refusal":               {0, exchangeError{noToken: true, kind: refusal}, 0, 100, refused, 5 * time.Minute, 5 * time.Minute},
		"Retry-After":             {0, exchangeError{noToken: true, retryAfter: time.Hour}, 0, 100, unavailable, time.Hour, time.Hour},
		"a short Retry-After":     {0, exchangeError{noToken: true, kind: refusal, retryAfter: sec}, 0, 100, refused, 5 * time.Minute, 5 * time.Minute},
		"below half of the limit": {0, exchangeError{}, 4, 10, unavailable, sec, sec},
		"half of the limit":       {0, exchangeError{}, 5, 10, unavailable, ledgerWindow / 5, ledgerWindow / 5},
		"the whole limit":         {0, exchangeError{}, 10, 10, unavailable, ledgerWindow, ledgerWindow},
		"it cost no token":        {0, exchangeError{noToken: true}, 10, 10, unavailable, sec, sec},
		"without a limit":         {0, exchangeError{}, 10, 0, unavailable, sec, sec},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entry := tokenEntry{Generation: "g"}
			for range test.used {
				entry = entry.withRequest(start2000)
			}
			failures := 0
			if test.before > 0 {
				failures = maxFailureCount - 1
				entry.Failure = &failedAttempt{Count: failures, Time: start2000.Add(-test.before), NextAttempt: start2000}
			}
			got := entry.withFailedExchange("g", &test.exchange, test.limit, start2000).Failure
			if wait := got.NextAttempt.Sub(start2000); wait < test.least || wait > test.most {
				t.Errorf("waits %s, want %s to %s", wait, test.least, test.most)
			}
			if want := min(failures+1, maxFailureCount-1); got.Kind != test.kind || got.Count != want {
				t.Errorf("kind %d, %d failures; want %d, %d", got.Kind, got.Count, test.kind, want)
			}
		})
	}
}

// TestAShorterWaitIsACopy: readers hold the entry that it was made from.
func TestAShorterWaitIsACopy(t *testing.T) {
	t.Parallel()
	before := tokenEntry{Failure: &failedAttempt{Count: 1, Time: start2000, NextAttempt: start2000.Add(5 * time.Hour)}}
	after := before.withShorterWait(start2000)
	if got, kept := after.Failure.wait(), before.Failure.wait(); got != time.Hour || kept != 5*time.Hour {
		t.Errorf("waits %s, the entry before waits %s", got, kept)
	}
}

// TestOddTokensAreStored: what the engine stores it can read again, also after Autopay
// has returned the same token with odd lifetimes.
func TestOddTokensAreStored(t *testing.T) {
	t.Parallel()
	begun, later := start2000, start2000.Add(2*time.Hour)
	token := func(life time.Duration) tokenAnswer { return tokenAnswer{accessToken: "t", lifetime: life} }
	ahead := tokenEntry{}.withToken("g", token(24*time.Hour), begun.Add(4*time.Minute), begun).withRequest(begun)
	for name, entry := range map[string]tokenEntry{
		"reissued for ten years": tokenEntry{}.withToken("g", token(time.Hour), begun, begun).withToken("g", token(maxLifetime*time.Second), later, later),
		"about to expire":        ahead.withFailedExchange("g", ahead.expiredOnArrival(token(time.Second), begun), 100, begun),
	} {
		data, err := json.Marshal(entry)
		if _, whole := decodeToken(data, later); err != nil || !whole {
			t.Errorf("%s: damaged: %s", name, data)
		}
	}
}
