package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	ledgerWindow  = 24 * time.Hour
	minTTL        = 5 * time.Second
	maxOutageTTL  = 60 * time.Second
	liveMargin    = 30 * time.Second // a token this close to its expiry is not handed out
	backoffFirst  = time.Second
	backoffMax    = 60 * time.Second
	refusedDelay  = 5 * time.Minute
	youngToken    = 60 * time.Second // rotate keeps a token younger than this
	rotateSpacing = 5 * time.Second  // between an attempt and a rotate
	proofSpacing  = 5 * time.Second  // between a failed proof and the same one again
)

// tokenEntry is what storage keeps at token/NAME: the token, the ledger of
// requests and the last failure. It is a value: its methods return changed
// copies and never write to what they were called on.
type tokenEntry struct {
	// Generation is the one of the configEntry that token and failure belong to.
	Generation  string `json:"generation,omitempty"`
	AccessToken string `json:"access_token,omitempty"` // "": none
	Scope       string `json:"scope,omitempty"`
	// ExpireTime and LastVaultRotation are whole seconds in UTC. Both count
	// from before the token was asked for.
	ExpireTime        time.Time `json:"expire_time,omitzero"`
	LastVaultRotation time.Time `json:"last_vault_rotation,omitzero"`
	// NextRotation overrides the schedule after Autopay answered with the
	// token that was already in hand.
	NextRotation time.Time `json:"next_rotation,omitzero"`
	// Requests is the ledger: when token requests left, in Unix seconds
	// rounded up, ascending, 24 hours deep.
	Requests []int64 `json:"requests,omitempty"`
	// Failure is the last attempt, if it failed.
	Failure *failure `json:"failure,omitempty"`
}

// failure is a failed attempt to obtain a token. It is an error that readers
// without a live token are given until NextAttempt.
type failure struct {
	Text        string    `json:"text"`
	Status      int       `json:"status"` // HTTP status for a reader: 500, 502 or 503
	Time        time.Time `json:"time"`
	Count       int       `json:"count"` // consecutive failures
	NextAttempt time.Time `json:"next_attempt"`
}

// Error implements error.
func (f *failure) Error() string {
	return fmt.Sprintf("%s; the next attempt is at %s", f.Text, formatTime(f.NextAttempt))
}

// formatTime renders t in RFC 3339, UTC, rounded up to whole seconds.
func formatTime(t time.Time) string {
	return t.Add(time.Second - 1).Truncate(time.Second).UTC().Format(time.RFC3339)
}

// forGeneration returns the entry as it counts for settings of generation g:
// a token or failure of other settings is dropped, the ledger stays.
func (e tokenEntry) forGeneration(g string) tokenEntry {
	if e.Generation == g {
		return e
	}
	return tokenEntry{Generation: g, Requests: e.Requests}
}

// valid reports whether this engine could have written the entry. Damage that
// still decodes could be handed to a reader, or keep one waiting without end.
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

// valid reports whether this engine could have written the failure.
func (f *failure) valid() bool {
	wait := f.NextAttempt.Sub(f.Time)
	return (f.Status == http.StatusInternalServerError || f.Status == http.StatusBadGateway || f.Status == http.StatusServiceUnavailable) &&
		f.Count > 0 && f.Count < math.MaxInt32 && wait >= backoffFirst && wait <= ledgerWindow &&
		len(f.Text) <= maxFieldSize && !strings.ContainsFunc(f.Text, notPrintable)
}

func wholeUTC(t time.Time) bool {
	_, offset := t.Zone()
	return offset == 0 && t.Nanosecond() == 0
}

// sane returns a loaded entry without what a clock that stepped back since
// has made wrong: a token whose age can't be told, waits without end.
func (e tokenEntry) sane(now time.Time) tokenEntry {
	if e.LastVaultRotation.After(now.Add(e.margin())) {
		e = tokenEntry{Generation: e.Generation, Requests: e.Requests, Failure: e.Failure}
	}
	if e.Failure != nil && e.Failure.Time.After(now) {
		e.Failure = nil
	}
	e.Requests = slices.Clone(e.Requests)
	for i, t := range e.Requests {
		e.Requests[i] = min(t, unixUp(now))
	}
	slices.Sort(e.Requests)
	return e
}

// unixUp is t in Unix seconds, rounded up, so that the ledger's window is never short.
func unixUp(t time.Time) int64 {
	return t.Add(time.Second - 1).Unix()
}

// lifetime is how long Autopay honours the token, in all.
func (e tokenEntry) lifetime() time.Duration {
	return e.ExpireTime.Sub(e.LastVaultRotation)
}

// margin is how long before its expiry the token stops being handed out.
func (e tokenEntry) margin() time.Duration {
	return min(liveMargin, e.lifetime()/20)
}

// liveUntil is when the token stops being handed out; zero without a token.
func (e tokenEntry) liveUntil() time.Time {
	if e.AccessToken == "" {
		return time.Time{}
	}
	return e.ExpireTime.Add(-e.margin())
}

// requestsAt counts the requests in the 24 hours before now.
func (e tokenEntry) requestsAt(now time.Time) int {
	oldest := now.Add(-ledgerWindow)
	i, _ := slices.BinarySearchFunc(e.Requests, oldest, func(t int64, oldest time.Time) int {
		if time.Unix(t, 0).After(oldest) {
			return 1
		}
		return -1
	})
	return len(e.Requests) - i
}

// limitedUntil is when the ledger allows the next request under limit; a
// time in the past where it allows one now.
func (e tokenEntry) limitedUntil(limit int) time.Time {
	if limit == 0 || len(e.Requests) < limit {
		return time.Time{}
	}
	return time.Unix(e.Requests[len(e.Requests)-limit], 0).Add(ledgerWindow)
}

// limited is why the ledger allows no request at now; nil if it does. A limit
// of 0 is none.
func (e tokenEntry) limited(limit int, now time.Time) *failure {
	until := e.limitedUntil(limit)
	if !now.Before(until) {
		return nil
	}
	f := &failure{
		Text:        fmt.Sprintf("the token_request_limit of %d in 24 hours is used up; raise it, or wait", limit),
		Status:      http.StatusServiceUnavailable,
		Time:        e.lastRequest(), // the request that used it up
		NextAttempt: until,
	}
	if e.Failure != nil {
		f.Count = e.Failure.Count
	}
	return f
}

// eased returns the entry after an operator changed its settings, the limit
// perhaps: what waits for longer than Autopay itself may ask for, waits no longer.
func (e tokenEntry) eased(now time.Time) tokenEntry {
	if latest := now.Add(maxRetryAfter); e.Failure != nil && e.Failure.NextAttempt.After(latest) {
		f := *e.Failure
		f.NextAttempt = latest
		e.Failure = &f
	}
	return e
}

// lastRequest is when the last request in the ledger left; zero if there is none.
func (e tokenEntry) lastRequest() time.Time {
	if len(e.Requests) == 0 {
		return time.Time{}
	}
	return time.Unix(e.Requests[len(e.Requests)-1], 0)
}

// entered returns the entry with a request at now in its ledger.
func (e tokenEntry) entered(now time.Time) tokenEntry {
	recent := e.Requests[len(e.Requests)-e.requestsAt(now):]
	e.Requests = append(slices.Clone(recent), unixUp(now))
	return e
}

// struckOut returns the entry without the request entered last.
func (e tokenEntry) struckOut() tokenEntry {
	e.Requests = e.Requests[:len(e.Requests)-1]
	return e
}

// obtained returns the entry with the token that Autopay gave at now for a
// request sent at sent, under settings of generation g.
func (e tokenEntry) obtained(g string, answer tokenAnswer, sent, now time.Time) tokenEntry {
	old := e
	sent = sent.UTC().Truncate(time.Second)
	e.Generation = g
	e.AccessToken = answer.accessToken
	e.Scope = answer.scope
	e.ExpireTime = sent.Add(answer.lifetime)
	e.LastVaultRotation = sent
	e.NextRotation = time.Time{}
	e.Failure = nil
	if old.AccessToken != answer.accessToken {
		// Two tokens within a second: last_vault_rotation must tell them apart.
		if old.AccessToken != "" && !sent.After(old.LastVaultRotation) {
			e.LastVaultRotation = old.LastVaultRotation.Add(time.Second)
		}
		return e
	}
	// The same token again changes nothing but the next attempt, unless it
	// was given new life after it had ended by our books.
	e.LastVaultRotation = old.LastVaultRotation
	if now.Before(old.liveUntil()) {
		e.Scope, e.ExpireTime = old.Scope, old.ExpireTime
	}
	e.NextRotation = now.Add(max(e.ExpireTime.Sub(now)/2, minTTL))
	return e
}

// failed returns the entry with a failed attempt at now, under settings of
// generation g, whose ledger allows limit requests (0: any number).
func (e tokenEntry) failed(g string, f *fault, limit int, now time.Time) tokenEntry {
	e = e.forGeneration(g)
	count := 1
	if e.Failure != nil {
		count += e.Failure.Count
	}
	delay := backoffMax
	if shift := count - 1; shift < 6 {
		delay = min(backoffFirst<<shift, backoffMax)
	}
	// Up to a quarter less, so that many credentials do not come back at once.
	delay = max(delay-rand.N(delay/4), backoffFirst) //nolint:gosec // jitter needs no secrecy
	if f.refused() {
		delay = refusedDelay
	}
	delay = max(delay, f.retryAfter)
	// A failure that may have cost a token: from half the limit on, the rest
	// must last for 24 hours.
	if used := e.requestsAt(now); !f.noToken && limit > 0 && 2*used >= limit {
		delay = max(delay, ledgerWindow/time.Duration(max(limit-used, 1)))
	}
	next := now.Add(delay)
	if e.Failure != nil && e.Failure.NextAttempt.After(next) {
		next = e.Failure.NextAttempt // an operator's attempt does not shorten the wait
	}
	e.Failure = &failure{Text: f.text, Status: f.status, Time: now, Count: count, NextAttempt: next}
	return e
}
