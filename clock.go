package main

import (
	"math"
	"time"
)

// # Time
//
// Go reads two clocks at once: the wall clock, which can be set, and a monotonic
// clock, which nobody can set but which stops while the machine sleeps. A token's
// times are compared by both. It is live only while both say so, and a refresh is due
// as soon as either does. So neither a clock that is set nor a suspended machine makes
// a token live longer (rule 4), and the effects of a wrong clock end with the next
// token.
//
// Storage holds wall times only. When an entry is loaded, its times are anchored to
// the clock's reading at that moment, and count by both clocks from then on. This has
// limits: a step of the wall clock while the process is down can't be seen, and a
// token that another node's clock dates in the future is of unknown age. Such a token
// is not handed out until the clocks agree, and one from more than maxClockSkew ahead
// is dropped. A failure or a request in the future counts as one of now.
//
// Times that users see, and those of the ledger, are the wall clock's. Pauses within
// the process count by its uptime, which no step changes.

// before reports whether both of Go's clocks say that now is before t. t has a
// monotonic reading if it was derived from a reading of the clock or comes from
// anchored.
func before(now, t time.Time) bool {
	return now.Before(t) && now.Round(0).Before(t.Round(0)) // Round(0) strips the monotonic reading
}

// timeLeft is the time from now until t by whichever clock leaves less.
func timeLeft(now, t time.Time) time.Duration {
	return min(t.Sub(now), t.Round(0).Sub(now.Round(0)))
}

// anchored gives t, a wall clock time, a monotonic reading: the one that the
// clock, read as now, will show at t if nobody sets the wall clock.
func anchored(now, t time.Time) time.Time {
	wait := t.Sub(now.Round(0))
	if wait == math.MaxInt64 || wait == math.MinInt64 {
		return t // centuries away, or zero: no duration can say how far
	}
	return now.Add(wait)
}

// ceilSecond rounds d up to whole seconds.
func ceilSecond(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// unixUp is t in Unix seconds, rounded up so that the ledger's window is never
// too short.
func unixUp(t time.Time) int64 {
	return t.Add(time.Second - 1).Unix()
}

// formatTime renders t in RFC 3339, UTC, rounded up to whole seconds: whoever waits until
// then does not come too early.
func formatTime(t time.Time) string {
	return t.Add(time.Second - 1).Truncate(time.Second).UTC().Format(time.RFC3339)
}

// timeOrNull is formatTime for responses: nil for the zero time.
func timeOrNull(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return formatTime(t)
}
