package main

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

// TestDecodeToken changes one thing in an entry that the engine could have stored. What
// is damaged is reported, and only its ledger kept.
func TestDecodeToken(t *testing.T) {
	t.Parallel()
	type change = func(e *tokenEntry)
	begun := start2000.Add(-time.Hour) // now is start2000
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	zone := time.FixedZone("", 7200)
	long := strings.Repeat("x", maxTokenSize+1)
	failed := func(change func(f *failedAttempt)) change { return func(e *tokenEntry) { change(e.Failure) } }
	kind := func(kind failureKind) change { return failed(func(f *failedAttempt) { f.Kind = kind }) }
	count := func(n int) change { return failed(func(f *failedAttempt) { f.Count = n }) }
	wait := func(d time.Duration) change { return failed(func(f *failedAttempt) { f.NextAttempt = f.Time.Add(d) }) }
	text := func(text string) change { return failed(func(f *failedAttempt) { f.Text = text }) }
	token := func(token string) change { return func(e *tokenEntry) { e.AccessToken = token } }
	scope := func(scope string) change { return func(e *tokenEntry) { e.Scope = scope } }
	expire := func(at time.Time) change { return func(e *tokenEntry) { e.ExpireTime = at } }
	start := func(at time.Time) change { return func(e *tokenEntry) { e.LastVaultRotation = at } }
	next := func(d time.Duration) change { return func(e *tokenEntry) { e.NextRotation = e.ExpireTime.Add(d) } }
	settings := func(generation string) change { return func(e *tokenEntry) { e.Generation = generation } }
	noFailure := func(e *tokenEntry) { e.Failure = nil }
	noToken := func(e *tokenEntry) {
		*e = tokenEntry{Generation: e.Generation, Requests: e.Requests, Failure: e.Failure}
	}
	lifetime := func(seconds int) change { return expire(begun.Add(time.Duration(seconds) * time.Second)) }

	for name, changes := range map[string][]change{
		"as it was written":              {},
		"without a failure":              {noFailure},
		"a ledger alone":                 {noToken, noFailure, settings("")},
		"a failure alone":                {noToken},
		"of other settings":              {settings("h")},
		"lifetime of ten years":          {lifetime(maxLifetime)},
		"due again after the same token": {next(minTTL)},
		"refused":                        {kind(refused)},
		"storage had failed":             {kind(storageFailed)},
		"waits for a day":                {wait(24 * time.Hour)},
		"failed in another zone":         {failed(func(f *failedAttempt) { f.Time = f.Time.In(zone) })},

		"damaged: a token without settings":    {settings(""), noFailure},
		"damaged: a failure without settings":  {noToken, settings("")},
		"damaged: times without a token":       {token("")},
		"damaged: a next rotation alone":       {noToken, noFailure, settings(""), next(minTTL)},
		"damaged: token with a newline":        {token("a\r\nX-Evil: 1")},
		"damaged: token with a space":          {token("a b")},
		"damaged: token not ASCII":             {token("tökn")},
		"damaged: token too long":              {token(long)},
		"damaged: scope with a newline":        {scope("a\nb")},
		"damaged: scope too long":              {scope(long)},
		"damaged: no expiry":                   {expire(time.Time{})},
		"damaged: no beginning":                {start(time.Time{})},
		"damaged: expired before it began":     {lifetime(-1)},
		"damaged: lifetime over ten years":     {lifetime(maxLifetime + 1)},
		"damaged: lifetime of 8000 years":      {expire(far)},
		"damaged: expiry in another zone":      {expire(begun.Add(time.Hour).In(zone))},
		"damaged: beginning in another zone":   {start(begun.In(zone))},
		"damaged: fraction of a second":        {expire(begun.Add(time.Millisecond))},
		"damaged: next rotation after the end": {next(minTTL + 1)},

		"damaged: failure of an unknown kind":   {kind(418)},
		"damaged: failure that never was one":   {count(0)},
		"damaged: fewer failures than none":     {count(-5)}, // would shift by a negative number
		"damaged: more failures than there are": {count(math.MaxInt)},
		"damaged: waits until 9999":             {failed(func(f *failedAttempt) { f.NextAttempt = far })},
		"damaged: waits for more than a day":    {wait(24*time.Hour + 1)},
		"damaged: waits for no time":            {wait(0)},
		"damaged: failure in control codes":     {text("a\x1b[31m\r\nb")},
		"damaged: failure with a long story":    {text(strings.Repeat("x", maxFieldSize+1))},
		"damaged: Retry-After of two hours":     {failed(func(f *failedAttempt) { f.RetryAfter = 7200 })},
	} {
		entry := tokenEntry{
			Generation: "g", AccessToken: "token", Scope: "scope",
			LastVaultRotation: begun, ExpireTime: begun.Add(24 * time.Hour), Requests: []int64{begun.Unix()},
			Failure: &failedAttempt{
				Text: "Autopay answered 503", Kind: unavailable, Count: 1,
				Time: start2000.Add(-time.Minute), NextAttempt: start2000.Add(-time.Minute + time.Second),
			},
		}
		for _, change := range changes {
			change(&entry)
		}
		stored, err := json.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		want := entry
		if f := want.Failure; f != nil {
			f.Time = f.Time.UTC()
		}
		if strings.HasPrefix(name, "damaged") {
			want = tokenEntry{Requests: entry.Requests}
		}
		got, whole := decodeToken(stored, start2000)
		kept, _ := json.Marshal(got) // by the wall clock
		if wanted, _ := json.Marshal(want); whole == strings.HasPrefix(name, "damaged") || string(kept) != string(wanted) {
			t.Errorf("%s: whole %v, kept %.300s, want %.300s", name, whole, kept, wanted)
		}
	}
}

// TestDecodeDamagedJSON: what is not an entry at all is reported too.
func TestDecodeDamagedJSON(t *testing.T) {
	t.Parallel()
	for stored, requests := range map[string]int{
		``: 0, `{`: 0, `[]`: 0, `null`: 0, `{"requests":[1,"2"]}`: 0, `{"requests":{}}`: 0,
		`{"requests":[946684800],"failure":"Autopay was down"}`: 1,
		`{"requests":[946684800],"expire_time":946771200}`:      1,
	} {
		got, whole := decodeToken([]byte(stored), start2000)
		if whole != (stored == "null") || len(got.Requests) != requests || got.Generation != "" {
			t.Errorf("%s: %+v, whole %v", stored, got, whole)
		}
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
	ahead := sent(0, 240*time.Hour).withLedgerUntil(start2000.Add(time.Hour))
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
		"by a clock that was ahead":  {ahead, time.Hour, 1, 1, day + time.Hour},
	} {
		if got := test.entry.requestsAt(start2000.Add(test.at)); got != test.used {
			t.Errorf("%s: %d requests, want %d", name, got, test.used)
		}
		until := test.entry.limitedUntil(test.limit)
		if until.IsZero() != (test.allowed < 0) || !until.IsZero() && !until.Equal(start2000.Add(test.allowed)) {
			t.Errorf("%s: the next is allowed at %s, want %s after the start", name, until, test.allowed)
		}
	}
	if got := sent(0, time.Hour, day+time.Hour).Requests; len(got) != 1 {
		t.Errorf("%d requests are kept, want the last 24 hours", len(got))
	}
}

// TestWithToken checks the entry after Autopay has answered with a token.
func TestWithToken(t *testing.T) {
	t.Parallel()
	const life, few, sec = 24 * time.Hour, 6 * time.Second, time.Second
	for name, test := range map[string]struct {
		token               string // Autopay's answer; the one in hand is "a"
		life                time.Duration
		at                  time.Duration
		obtained, ends, due time.Duration // since the token in hand; due 0: as scheduled
	}{
		"another token":                {"b", life, 18 * time.Hour, 18 * time.Hour, 18*time.Hour + life, 0},
		"another, a second later":      {"b", life, time.Second, time.Second, time.Second + life, 0},
		"another in the same second":   {"b", life, time.Second - 1, time.Second, life, 0},
		"in the same second, short":    {"b", few, time.Second - 1, -time.Second, few, 0},
		"another, by a clock set back": {"b", life, -time.Hour, -time.Hour, life - time.Hour, 0},
		"the same, live":               {"a", life, 18 * time.Hour, 0, life, 21 * time.Hour},
		"the same, close to its end":   {"a", life, life - 31*sec, 0, life, life - 31*sec + 31*sec/2},
		"the same, shortly before":     {"a", life, life - 30*sec - 1, 0, life, life - 30*sec - 1 + (30*sec+1)/2},
		"the same, reissued":           {"a", life, 34 * time.Hour, 0, 34*time.Hour + life, 34*time.Hour + life/2},
		"the same, of a few seconds":   {"a", few, 5 * time.Second, 0, few, 10 * time.Second},
	} {
		// A clock in another zone: what is stored is UTC.
		begun, answer := start2000.In(time.FixedZone("", 7200)), tokenAnswer{"a", "s", test.life}
		entry := tokenEntry{Failure: &failedAttempt{Count: 1}}.withToken("g", answer, begun, begun)
		answer.accessToken = test.token
		now := begun.Add(test.at)
		entry = entry.withToken("g", answer, now, now)
		if entry.Failure != nil || !entry.valid() {
			t.Errorf("%s: not an entry with a token: %+v", name, entry)
		}
		if got := entry.LastVaultRotation.Sub(start2000); got != test.obtained {
			t.Errorf("%s: last_vault_rotation after %s, want %s", name, got, test.obtained)
		}
		if got := entry.ExpireTime.Sub(start2000); got != test.ends {
			t.Errorf("%s: expire_time after %s, want %s", name, got, test.ends)
		}
		if got := entry.NextRotation; got.IsZero() != (test.due == 0) || test.due > 0 && got.Sub(start2000) != test.due {
			t.Errorf("%s: next rotation at %s, want %s after the start", name, got, test.due)
		}
	}
}

// TestWithFailedExchange checks the wait after an exchange that failed.
func TestWithFailedExchange(t *testing.T) {
	t.Parallel()
	const sec = time.Second
	refusedFor := func(retryAfter time.Duration) exchangeError {
		return exchangeError{noToken: true, kind: refusal, retryAfter: retryAfter}
	}
	noToken, maybe := exchangeError{noToken: true}, exchangeError{}
	for name, test := range map[string]struct {
		before      time.Duration // the wait after the last failure
		exchange    exchangeError
		used, limit int
		kind        failureKind
		least, most time.Duration
	}{
		"the first":               {0, noToken, 0, 100, unavailable, sec, sec},
		"after a second":          {sec, noToken, 0, 100, unavailable, 1500 * time.Millisecond, 2 * sec},
		"after a minute":          {45 * sec, noToken, 0, 100, unavailable, 45 * sec, 60 * sec},
		"a refusal":               {0, refusedFor(0), 0, 100, refused, 300 * sec, 300 * sec},
		"Retry-After":             {0, refusedFor(time.Hour), 0, 100, refused, time.Hour, time.Hour},
		"a short Retry-After":     {0, refusedFor(sec), 0, 100, refused, 300 * sec, 300 * sec},
		"below half of the limit": {0, maybe, 4, 10, unavailable, sec, sec},
		"half of the limit":       {0, maybe, 5, 10, unavailable, ledgerWindow / 5, ledgerWindow / 5},
		"the whole limit":         {0, maybe, 10, 10, unavailable, ledgerWindow, ledgerWindow},
		"it cost no token":        {0, noToken, 10, 10, unavailable, sec, sec},
		"without a limit":         {0, maybe, 10, 0, unavailable, sec, sec},
	} {
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
			t.Errorf("%s: waits %s, want %s to %s", name, wait, test.least, test.most)
		}
		if want := min(failures+1, maxFailureCount-1); got.Kind != test.kind || got.Count != want {
			t.Errorf("%s: kind %d, %d failures; want %d, %d", name, got.Kind, got.Count, test.kind, want)
		}
	}
}

// TestAShorterWaitIsACopy: readers hold the entry that it was made from.
func TestAShorterWaitIsACopy(t *testing.T) {
	t.Parallel()
	before := tokenEntry{Failure: &failedAttempt{Time: start2000, NextAttempt: start2000.Add(5 * time.Hour)}}
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
	first := tokenEntry{}.withToken("g", token(time.Hour), begun, begun)
	ahead := tokenEntry{}.withToken("g", token(24*time.Hour), begun.Add(4*time.Minute), begun).withRequest(begun)
	expired := ahead.expiredOnArrival(token(time.Second), begun)
	for name, entry := range map[string]tokenEntry{
		"reissued for ten years": first.withToken("g", token(maxLifetime*time.Second), later, later),
		"about to expire":        ahead.withFailedExchange("g", expired, 100, begun),
	} {
		data, err := json.Marshal(entry)
		if _, whole := decodeToken(data, later); err != nil || !whole {
			t.Errorf("%s: damaged: %s", name, data)
		}
	}
}
