package main

import (
	"fmt"
	"maps"
	"time"
)

// # What readers see
//
// A snapshot answers every question about a credential: is the token live, is it due,
// may a request be sent, what is wrong, how long should a reader keep it. It is derived
// once, from settings and a token entry, and then only compared with the time. So a
// read costs a few comparisons, and all answers of one read agree with each other.
//
// Three times matter. Until liveUntil the token may be handed out. At scheduled the next
// request is wanted: by period or schedule, by the answer to the last request, or by the
// backoff after a failure. At limitedUntil the ledger allows it. A token is due when the
// last two have come.

// snapshot is one credential as readers see it. It is immutable and is rebuilt
// whenever anything in it changes. All its times are derived when it is built,
// so that every question about a token is a comparison with now.
type snapshot struct {
	changes     uint64        // the credential's changes when storage was read
	config      *configEntry  // nil: not configured, or damaged
	damage      *damagedError // why a stored config can't be used; nil: it can
	entry       tokenEntry
	unsaved     bool   // the entry is newer than the one in storage (rule 9)
	loggedState string // the state when the log last told of a failure or a new token

	liveFrom     time.Time     // earliest time at which the token may be served; before it, the token is from the future
	liveUntil    time.Time     // and until then; zero: no token
	period       time.Duration // from this token to the next, whole seconds
	periodReason string        // what period was taken from
	scheduled    time.Time     // when the next request is wanted; zero: at once
	limitedUntil time.Time     // the ledger allows no request before

	fields map[string]any // of the response, without ttl; read only; nil: no token
}

// newSnapshot derives what readers need from settings and a token entry at
// now. A token of other settings is not in it (rule 7).
func newSnapshot(config *configEntry, entry tokenEntry, now time.Time) *snapshot {
	s := &snapshot{config: config, entry: entry}
	if config == nil {
		return s
	}
	s.entry = entry.forGeneration(config.Generation).withLedgerUntil(now)
	s.limitedUntil = anchored(now, s.entry.limitedUntil(config.TokenRequestLimit))
	if s.entry.AccessToken != "" {
		s.liveFrom, s.liveUntil = s.entry.life()
		s.period, s.periodReason = rotationPeriod(config, s.entry, now)
		s.scheduled = s.entry.obtained().Add(s.period)
		s.fields = map[string]any{
			"access_token":        s.entry.AccessToken,
			"token_type":          "Bearer",
			"scope":               s.entry.Scope,
			"expire_time":         s.entry.ExpireTime.Format(time.RFC3339),
			"last_vault_rotation": s.entry.LastVaultRotation.Format(time.RFC3339),
			"rotation_period":     int64(s.period / time.Second),
		}
	}
	if !s.entry.NextRotation.IsZero() {
		s.scheduled = s.entry.NextRotation
	}
	if s.entry.Failure != nil {
		s.scheduled = s.entry.Failure.NextAttempt
	}
	return s
}

// Why a token is due when it is, as status shows it.
const (
	reasonSchedule = "schedule" // rotation_schedule
	reasonPeriod   = "period"   // rotation_period
	reasonLifetime = "lifetime" // of the token
	reasonRetry    = "retry"    // the last attempt failed, was not allowed, or brought the same token again
)

// rotationPeriod is the maximum age of a token, and why: until the operator's schedule
// or period, or 75% of its lifetime, and never more than 90%.
func rotationPeriod(config *configEntry, entry tokenEntry, now time.Time) (period time.Duration, reason string) {
	lifetime := entry.lifetime()
	period, reason = lifetime*3/4, reasonLifetime
	if config.RotationPeriod > 0 {
		period, reason = time.Duration(config.RotationPeriod)*time.Second, reasonPeriod
		if longest := lifetime * 9 / 10; period > longest {
			period, reason = longest, reasonLifetime
		}
	}
	if schedule := config.schedule(); schedule != nil {
		since := time.Unix(config.ScheduleSince, 0)
		if since.After(now) { // set by a clock that was ahead
			since = entry.LastVaultRotation
		}
		if at := scheduledRotation(schedule, entry.LastVaultRotation, since, lifetime); !at.IsZero() {
			period, reason = at.Sub(entry.LastVaultRotation), reasonSchedule
		}
	}
	return max(period.Truncate(time.Second), time.Second), reason
}

// rotationReason is why the token is due when it is.
func (s *snapshot) rotationReason() string {
	if !s.dueAt().Equal(s.entry.obtained().Add(s.period)) {
		return reasonRetry
	}
	return s.periodReason
}

// live is entry.live with the times that are derived already.
func (s *snapshot) live(now time.Time) bool {
	return before(now, s.liveUntil) && !before(now, s.liveFrom)
}

// dueAt is when the next request is to be sent: when it is both wanted and allowed.
func (s *snapshot) dueAt() time.Time {
	if s.limitedUntil.After(s.scheduled) {
		return s.limitedUntil
	}
	return s.scheduled
}

// wait is how long to wait for dueAt; negative or 0: it has come. Each of the two
// times counts by whichever clock leaves less, so due and blocked never disagree,
// whatever was done to the wall clock between the two.
func (s *snapshot) wait(now time.Time) time.Duration {
	return max(timeLeft(now, s.scheduled), timeLeft(now, s.limitedUntil))
}

// due reports whether a request is to be sent now: when the next one is both wanted and
// allowed, or when there is no live token and neither the ledger nor a backoff forbids
// one. The second case is a token that became useless before it was due, because a clock
// was set.
func (s *snapshot) due(now time.Time) bool {
	return !before(now, s.scheduled) && !before(now, s.limitedUntil) || !s.live(now) && s.blocked(now) == nil
}

// exists reports that a credential is stored, usable or not. s may be nil.
func (s *snapshot) exists() bool { return s != nil && (s.config != nil || s.damage != nil) }

// scheduleGap is the first scheduled time that leaves a token of this lifetime
// without another; zero if there is none, or as long as no lifetime is known.
func (s *snapshot) scheduleGap() time.Time {
	if s.fields == nil || s.config.RotationSchedule == "" {
		return time.Time{}
	}
	return scheduleGap(s.config.schedule(), s.entry.LastVaultRotation, s.entry.lifetime())
}

// pending reports that no token has been requested yet under these settings.
func (s *snapshot) pending() bool { return s.entry.AccessToken == "" && s.entry.Failure == nil }

// limited is why the ledger allows no request now; nil if it allows one. The
// answer counts as a failed attempt made when the last request used up the limit.
func (s *snapshot) limited(now time.Time) *failedAttempt {
	if !before(now, s.limitedUntil) {
		return nil
	}
	return &failedAttempt{
		Kind: unavailable,
		Text: fmt.Sprintf("the token_request_limit of %d requests in 24 hours is reached; "+
			"wait, or raise the limit", s.config.TokenRequestLimit),
		Time:        s.entry.lastRequest(),
		Count:       s.entry.failures(),
		NextAttempt: s.limitedUntil,
	}
}

// blocked is why no request may be sent now unless an operator wants it: the
// ledger or the backoff; nil if one may.
func (s *snapshot) blocked(now time.Time) *failedAttempt {
	if f := s.limited(now); f != nil {
		return f
	}
	if f := s.entry.Failure; f != nil && before(now, f.NextAttempt) {
		return f
	}
	return nil
}

// problem is what keeps the token from being replaced; nil if nothing does. The limit
// counts only once a request is wanted: until then, nothing waits for it.
func (s *snapshot) problem(now time.Time) *failedAttempt {
	if f := s.limited(now); f != nil && (!s.live(now) || !before(now, s.scheduled)) {
		return f
	}
	return s.entry.Failure
}

// ttl is how long a reader should keep the token before it reads again: until
// the token is due to be replaced, and not for long while there is a problem. It is
// rounded up, so that a reader who comes back then does not come too early, and at
// least minTTL, so that no reader polls.
func (s *snapshot) ttl(now time.Time, problem *failedAttempt) time.Duration {
	most, wait := s.period, timeLeft(now, s.scheduled)
	if problem != nil {
		most, wait = min(most, maxOutageTTL), s.wait(now)
	}
	return max(min(ceilSecond(wait), most), minTTL)
}

// response returns the data that a reader gets, and the problem that a warning
// tells of. The caller may change the data.
func (s *snapshot) response(now time.Time) (data map[string]any, problem *failedAttempt) {
	problem = s.problem(now)
	data = maps.Clone(s.fields)
	data["ttl"] = int64(s.ttl(now, problem) / time.Second)
	return data, problem
}

// A credential's health, as status and metrics show it.
const (
	stateOK       = "ok"
	stateDegraded = "degraded"
	stateFailing  = "failing"
	statePending  = "pending"
)

// state names the credential's health.
func (s *snapshot) state(now time.Time) string {
	switch {
	case s.damage != nil:
		return stateFailing
	case s.live(now) && s.problem(now) == nil:
		return stateOK
	case s.live(now):
		return stateDegraded
	case s.pending() && s.limited(now) == nil:
		return statePending
	default:
		return stateFailing
	}
}
