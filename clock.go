package main

import "time"

// steadyClock returns a clock for a token's life: the wall clock, but never
// behind start plus the time that has gone by since. When the wall clock is set
// back, a token must not live longer; when the machine slept, which elapsed
// may not count, neither.
func steadyClock(wall func() time.Time, elapsed func() time.Duration) func() time.Time {
	start := wall().Add(-elapsed()).Round(0) // without its monotonic reading
	return func() time.Time {
		now, steady := wall().Round(0), start.Add(elapsed())
		if steady.After(now) {
			return steady
		}
		return now
	}
}

// systemClock is the steady clock of this machine.
func systemClock() func() time.Time {
	now := time.Now //nolint:forbidigo // the one place that reads the clock
	start := now()
	return steadyClock(now, func() time.Duration { return time.Since(start) })
}
