package main

import (
	"maps"
	"time"
)

// snapshot is one credential as readers see it: immutable, and rebuilt
// whenever anything in it changes. All its times are derived here, so that
// each question about a token is a plain comparison with now.
type snapshot struct {
	epoch   uint64       // the credential's epoch when storage was read
	config  *configEntry // nil: not configured, or damaged
	damage  error        // why a stored config can't be used
	entry   tokenEntry
	unsaved bool   // the entry is newer than storage's
	shown   string // the state when it was published, for the log

	liveUntil    time.Time     // the token is handed out until then; zero: no token
	period       time.Duration // between two tokens, whole seconds
	scheduled    time.Time     // when the next request is wanted; zero: at once
	limitedUntil time.Time     // the ledger allows no request before

	fields map[string]any // of the answer, less ttl; not to be changed; nil: no token
}

// newSnapshot derives what readers need from what storage holds. A token of
// other settings than config's is not in it (rule 7).
func newSnapshot(config *configEntry, entry tokenEntry) *snapshot {
	s := &snapshot{config: config, entry: entry}
	if config == nil {
		return s
	}
	s.entry = entry.forGeneration(config.Generation)
	s.limitedUntil = entry.limitedUntil(config.TokenRequestLimit)
	if s.entry.AccessToken != "" {
		s.liveUntil = s.entry.liveUntil()
		s.period = rotationPeriod(config, s.entry.lifetime())
		s.scheduled = s.entry.LastVaultRotation.Add(s.period)
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

// rotationPeriod is how old a token of this lifetime may get: what the
// operator set, three quarters of the lifetime without, never more than 90 %.
func rotationPeriod(config *configEntry, lifetime time.Duration) time.Duration {
	period := lifetime * 3 / 4
	if config.RotationPeriod > 0 {
		period = min(time.Duration(config.RotationPeriod)*time.Second, lifetime*9/10)
	}
	return max(period.Truncate(time.Second), time.Second)
}

// live reports whether the token may be handed out (rule 4).
func (s *snapshot) live(now time.Time) bool { return now.Before(s.liveUntil) }

// dueAt is when the next request leaves: when it is wanted and allowed.
func (s *snapshot) dueAt() time.Time {
	if s.limitedUntil.After(s.scheduled) {
		return s.limitedUntil
	}
	return s.scheduled
}

// due reports whether a request should leave now.
func (s *snapshot) due(now time.Time) bool { return !now.Before(s.dueAt()) }

// pending reports that no token was asked for yet under these settings.
func (s *snapshot) pending() bool { return s.entry.AccessToken == "" && s.entry.Failure == nil }

// limited is why the ledger allows no request now; nil if it does.
func (s *snapshot) limited(now time.Time) *failure {
	if !now.Before(s.limitedUntil) {
		return nil
	}
	return s.entry.limited(s.config.TokenRequestLimit, now)
}

// blocked is why no request may leave now without an operator's word: the
// ledger or the backoff; nil if one may.
func (s *snapshot) blocked(now time.Time) *failure {
	if f := s.limited(now); f != nil {
		return f
	}
	if f := s.entry.Failure; f != nil && now.Before(f.NextAttempt) {
		return f
	}
	return nil
}

// problem is what keeps the token from being replaced; nil if nothing does.
func (s *snapshot) problem(now time.Time) *failure {
	if wanted := !s.live(now) || !now.Before(s.scheduled); wanted {
		if f := s.limited(now); f != nil {
			return f
		}
	}
	return s.entry.Failure
}

// ttl is how long a reader should hold the token before it reads again: until
// it is due to be replaced, and not for long while replacing it fails.
func (s *snapshot) ttl(now time.Time) time.Duration {
	most, until := s.period, s.scheduled
	if s.problem(now) != nil {
		most, until = min(most, maxOutageTTL), s.dueAt()
	}
	return max(min(ceilSecond(until.Sub(now)), most), minTTL)
}

// answer is what a reader gets. The caller may change it.
func (s *snapshot) answer(now time.Time) map[string]any {
	data := maps.Clone(s.fields)
	data["ttl"] = int64(s.ttl(now) / time.Second)
	return data
}

// ceilSecond rounds d up to whole seconds.
func ceilSecond(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
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
