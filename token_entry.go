package main

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

const (
	ledgerWindow    = 24 * time.Hour
	minTTL          = 5 * time.Second
	maxOutageTTL    = 60 * time.Second // ttl while the token can't be replaced
	liveMargin      = 30 * time.Second // a token this close to its expiry is not handed out
	youngToken      = 60 * time.Second // rotate keeps a token younger than this
	rotateDelay     = 5 * time.Second  // after the first failed attempt; doubled with each further one
	rotateDelayMax  = 5 * time.Minute
	maxClockSkew    = 5 * time.Minute // between the clocks of two nodes
	maxFailureCount = math.MaxInt32
)

// # The ledger and the backoff
//
// The ledger is the list of token requests in the last 24 hours. A request is entered
// before it is sent, and the entry is stored, so that no crash forgets one. It is
// struck out again if it certainly obtained no token (rule 8). Times are rounded up to
// seconds, so that the window is never too short.
//
// After a failed attempt the next one waits, and the wait is stored with the failure,
// so that a restart does not shorten it. How long depends on the kind of failure
// (backoffs in client.go) and on the wait before it, which is doubled. Three things
// can make it longer: Retry-After; an earlier failure, whose wait an operator's
// attempt does not shorten; and the limit. Once half of the limit is used, attempts
// that may cost a token are spaced so that the rest lasts for 24 hours. An outage of
// hours would otherwise use up the limit and become one of a day.

// tokenEntry is what storage keeps at token/NAME: the token, the ledger of
// requests and the last failed attempt. It is a value: its methods return
// changed copies and never write to their receiver.
type tokenEntry struct {
	// Generation is that of the configEntry which token and failure belong to.
	Generation  string `json:"generation,omitempty"`
	AccessToken string `json:"access_token,omitempty"` // "": none
	Scope       string `json:"scope,omitempty"`
	// ExpireTime and LastVaultRotation are whole seconds in UTC, counted from
	// before the token was requested, by the wall clock.
	ExpireTime        time.Time `json:"expire_time,omitzero"`
	LastVaultRotation time.Time `json:"last_vault_rotation,omitzero"`
	// clock pairs the wall clock with the monotonic clock, read when the token was
	// requested or loaded. The times above are converted with it (see anchored).
	clock time.Time
	// NextRotation replaces the usual schedule after Autopay has returned the
	// token that was already there.
	NextRotation time.Time `json:"next_rotation,omitzero"`
	// Requests is the ledger: the times of token requests in Unix seconds,
	// rounded up, ascending, 24 hours deep.
	Requests []int64 `json:"requests,omitempty"`
	// Failure is the last attempt, if it failed.
	Failure *failedAttempt `json:"failure,omitempty"`
}

// failedAttempt is an attempt to obtain a token that failed. It is the error
// that readers without a live token get until NextAttempt.
type failedAttempt struct { //nolint:errname // stored data first, an error only for readers
	Text        string      `json:"text"`
	Kind        failureKind `json:"status"`
	Time        time.Time   `json:"time"`
	Count       int         `json:"count"` // failed attempts in a row
	NextAttempt time.Time   `json:"next_attempt"`
	// RetryAfter is how long Autopay asked us to wait, in seconds. It binds
	// operators too.
	RetryAfter int64 `json:"retry_after,omitempty"`
}

// Error implements error.
func (f *failedAttempt) Error() string {
	return fmt.Sprintf("%s; the next attempt is at %s", f.Text, formatTime(f.NextAttempt))
}

// wait is how long no attempt was to follow; 0 if f is nil.
func (f *failedAttempt) wait() time.Duration {
	if f == nil {
		return 0
	}
	return f.NextAttempt.Sub(f.Time)
}

// untilRotate returns f as an operator's rotate sees it: NextAttempt is when
// rotate may try. That is rotateDelay after the failure, doubled with each
// further failure in a row, but not before Autopay's Retry-After and not later
// than the next attempt that is due anyway.
func (f *failedAttempt) untilRotate() *failedAttempt {
	delay := min(rotateDelay<<min(f.Count-1, 10), rotateDelayMax)
	delay = max(delay, time.Duration(f.RetryAfter)*time.Second)
	g := *f
	if at := f.Time.Add(delay); at.Before(f.NextAttempt) {
		g.NextAttempt = at
	}
	return &g
}

// decodeToken reads a stored entry. If it is damaged, or written by a version with
// other rules, whole is false and the ledger alone is kept if that can be read. That
// costs one request.
//
// now is the time of loading, from which stored times count. A failure in the
// future, which only a wrong clock can have written, counts as one of now.
func decodeToken(data []byte, now time.Time) (e tokenEntry, whole bool) {
	if json.Unmarshal(data, &e) != nil || !e.valid() {
		var ledger struct {
			Requests []int64 `json:"requests"`
		}
		if json.Unmarshal(data, &ledger) != nil {
			ledger.Requests = nil
		}
		return tokenEntry{Requests: ledger.Requests}, false
	}
	e.clock = now
	e.NextRotation = anchored(now, e.NextRotation)
	if f := e.Failure; f != nil {
		wait := f.wait()
		f.Time = anchored(now, f.Time)
		if f.Time.After(now) {
			f.Time = now
		}
		f.NextAttempt = f.Time.Add(wait)
	}
	return e, true
}

// valid reports whether the engine could have written the entry. Damage that still
// decodes could be handed to a reader or keep one waiting without end.
func (e tokenEntry) valid() bool {
	switch {
	case e.Failure != nil && (e.Generation == "" || !e.Failure.valid()):
		return false
	case e.AccessToken == "":
		return e.Scope == "" && e.ExpireTime.IsZero() && e.LastVaultRotation.IsZero() && e.NextRotation.IsZero()
	case e.Generation == "" || len(e.AccessToken) > maxTokenSize || !visibleASCII(e.AccessToken, '!'):
		return false
	case len(e.Scope) > maxTokenSize || !visibleASCII(e.Scope, ' '):
		return false
	case !wholeUTC(e.ExpireTime) || !wholeUTC(e.LastVaultRotation):
		return false
	case e.lifetime() < 0 || e.lifetime() > maxLifetime*time.Second:
		return false
	}
	return !e.NextRotation.After(e.ExpireTime.Add(minTTL))
}

// valid reports whether the engine could have written the failure.
func (f *failedAttempt) valid() bool {
	wait := f.wait()
	return (f.Kind == unavailable || f.Kind == refused || f.Kind == storageFailed) &&
		f.Count > 0 && f.Count < maxFailureCount && wait >= time.Second && wait <= ledgerWindow &&
		f.RetryAfter >= 0 && f.RetryAfter <= int64(maxRetryAfter/time.Second) &&
		len(f.Text) <= maxFieldSize && !strings.ContainsFunc(f.Text, notPrintable)
}

// wholeUTC reports whether t is a time as the engine stores it. Readers get the times of
// a token as text, in whole seconds of UTC, so no other precision may come back.
func wholeUTC(t time.Time) bool {
	_, offset := t.Zone()
	return offset == 0 && t.Nanosecond() == 0
}

// forGeneration returns the entry as it counts for settings of a generation: a
// token or failure of other settings is left out, and the ledger stays (rule 7).
func (e tokenEntry) forGeneration(generation string) tokenEntry {
	if e.Generation == generation {
		return e
	}
	return tokenEntry{Generation: generation, Requests: e.Requests}
}

// lifetime is how long Autopay honors the token in all.
func (e tokenEntry) lifetime() time.Duration {
	return e.ExpireTime.Sub(e.LastVaultRotation)
}

// margin is how long before its expiry the token stops being handed out.
func (e tokenEntry) margin() time.Duration {
	return min(liveMargin, e.lifetime()/20)
}

// obtained is when the token was requested.
func (e tokenEntry) obtained() time.Time { return anchored(e.clock, e.LastVaultRotation) }

// life is when the token may be handed out: from shortly before it was requested,
// because the clocks of two nodes differ, until shortly before it expires. Both are
// zero without a token.
func (e tokenEntry) life() (from, until time.Time) {
	if e.AccessToken == "" {
		return time.Time{}, time.Time{}
	}
	return e.obtained().Add(-e.margin()), anchored(e.clock, e.ExpireTime.Add(-e.margin()))
}

// live reports whether the token may be handed out (rule 4).
func (e tokenEntry) live(now time.Time) bool {
	from, until := e.life()
	return before(now, until) && !before(now, from)
}

// requestsAt counts the requests in the 24 hours before now.
func (e tokenEntry) requestsAt(now time.Time) int {
	i, _ := slices.BinarySearch(e.Requests, now.Add(-ledgerWindow).Unix()+1)
	return len(e.Requests) - i
}

// lastRequest is when the last request in the ledger was sent; zero if there is none.
func (e tokenEntry) lastRequest() time.Time {
	if len(e.Requests) == 0 {
		return time.Time{}
	}
	return time.Unix(e.Requests[len(e.Requests)-1], 0)
}

// limitedUntil is when the ledger allows the next request under limit, where 0
// is no limit. It is a time in the past if the ledger allows one now.
func (e tokenEntry) limitedUntil(limit int) time.Time {
	if limit == 0 || len(e.Requests) < limit {
		return time.Time{}
	}
	return time.Unix(e.Requests[len(e.Requests)-limit], 0).Add(ledgerWindow)
}

// withLedgerUntil returns the entry with no request later than now in its
// ledger. A request in the future was entered by a clock that was ahead, and
// would count for longer than 24 hours.
func (e tokenEntry) withLedgerUntil(now time.Time) tokenEntry {
	e.Requests = slices.Clone(e.Requests)
	for i, t := range e.Requests {
		e.Requests[i] = min(t, unixUp(now))
	}
	slices.Sort(e.Requests)
	return e
}

// withRequest returns the entry with a request at now in its ledger.
func (e tokenEntry) withRequest(now time.Time) tokenEntry {
	e = e.withLedgerUntil(now)
	e.Requests = append(e.Requests[len(e.Requests)-e.requestsAt(now):], unixUp(now))
	return e
}

// withoutLastRequest returns the entry without the newest request in its ledger.
func (e tokenEntry) withoutLastRequest() tokenEntry {
	e.Requests = e.Requests[:len(e.Requests)-1]
	return e
}

// withToken returns the entry with the token that Autopay issued, under
// settings of a generation, for a request sent at sent and answered at now.
func (e tokenEntry) withToken(generation string, answer tokenAnswer, sent, now time.Time) tokenEntry {
	old := e
	e.clock = sent
	sent = sent.UTC().Truncate(time.Second)
	e.Generation = generation
	e.AccessToken = answer.accessToken
	e.Scope = answer.scope
	e.ExpireTime = sent.Add(answer.lifetime)
	e.LastVaultRotation = sent
	e.NextRotation = time.Time{}
	e.Failure = nil
	if old.AccessToken != answer.accessToken {
		// Two tokens were issued within the same second. Shift last_vault_rotation by a
		// second so that they differ; shift it into the past if a shift into the future
		// would exceed the margin of life.
		if sent.Equal(old.LastVaultRotation) {
			apart := time.Second
			if apart > e.margin() {
				apart = -apart
			}
			e.LastVaultRotation = sent.Add(apart)
		}
		return e
	}
	// The same token again. Nothing changes but the next attempt, unless the token
	// was reissued after we considered it expired. A time in the future, which a
	// wrong clock has left, is then put right.
	switch {
	case old.live(now):
		e.Scope, e.ExpireTime, e.LastVaultRotation, e.clock = old.Scope, old.ExpireTime, old.LastVaultRotation, old.clock
	case !old.LastVaultRotation.After(sent) && e.ExpireTime.Sub(old.LastVaultRotation) <= maxLifetime*time.Second:
		e.LastVaultRotation = old.LastVaultRotation
	}
	e.NextRotation = now.Add(max(timeLeft(now, anchored(e.clock, e.ExpireTime))/2, minTTL))
	return e
}

// expiredOnArrival describes an answer whose token can't be handed out at now. If
// it is the token that was already there, the next one is to be had once that has
// expired.
func (e tokenEntry) expiredOnArrival(answer tokenAnswer, now time.Time) *exchangeError {
	if e.AccessToken == answer.accessToken {
		// A second more, because expire_time counts from before the request, in whole seconds.
		left := max(ceilSecond(timeLeft(now, anchored(e.clock, e.ExpireTime))), 0) + time.Second
		text := "Autopay returned the same token again, which is about to expire"
		return &exchangeError{kind: outage, text: text, retryAfter: min(left, maxRetryAfter)}
	}
	return &exchangeError{kind: unusable, text: "Autopay's token had expired when it arrived"}
}

// withFailedExchange returns the entry with an exchange that failed at now,
// under settings of a generation whose ledger allows limit requests (0: any
// number).
func (e tokenEntry) withFailedExchange(generation string, x *exchangeError, limit int, now time.Time) tokenEntry {
	e = e.forGeneration(generation)
	b := backoffs[x.kind]
	delay := max(b.after(e.Failure.wait()), x.retryAfter)
	// An exchange that may have cost a token: from half the limit on, the rest
	// has to last for 24 hours.
	if used := e.requestsAt(now); !x.noToken && limit > 0 && 2*used >= limit {
		delay = max(delay, ledgerWindow/time.Duration(max(limit-used, 1)))
	}
	if e.Failure != nil { // an operator's attempt does not shorten the wait
		delay = max(delay, timeLeft(now, e.Failure.NextAttempt))
	}
	e.Failure = &failedAttempt{
		Text: x.text, Kind: b.status, Time: now, Count: min(e.failures()+1, maxFailureCount-1),
		NextAttempt: now.Add(delay), RetryAfter: int64(x.retryAfter / time.Second),
	}
	return e
}

// failures counts the failed attempts in a row.
func (e tokenEntry) failures() int {
	if e.Failure == nil {
		return 0
	}
	return e.Failure.Count
}

// withShorterWait returns the entry after an operator has changed the settings,
// perhaps the limit: it caps the remaining wait at maxRetryAfter, because a
// longer one was only meant to spread the old limit over the day.
func (e tokenEntry) withShorterWait(now time.Time) tokenEntry {
	if e.Failure != nil && timeLeft(now, e.Failure.NextAttempt) > maxRetryAfter {
		f := *e.Failure
		f.NextAttempt = now.Add(maxRetryAfter)
		e.Failure = &f
	}
	return e
}
