package main

import (
	"sync/atomic"
	"time"
)

// steadyClock returns a clock for a token's life. It follows the wall clock
// when that is set forward, or the machine slept, which elapsed may not count;
// it never follows it back: a token must not live longer for it. So it may be
// ahead of the wall clock until the process ends.
func steadyClock(wall func() time.Time, elapsed func() time.Duration) func() time.Time {
	start := wall().Add(-elapsed()).Round(0) // without its monotonic reading
	var ahead atomic.Int64                   // the most that the wall clock was ever ahead of start + elapsed
	return func() time.Time {
		steady := start.Add(elapsed())
		drift := int64(wall().Round(0).Sub(steady))
		for {
			most := ahead.Load()
			if drift <= most || ahead.CompareAndSwap(most, drift) {
				return steady.Add(time.Duration(max(drift, most)))
			}
		}
	}
}

// systemClock is the steady clock of this machine.
func systemClock() func() time.Time {
	now := time.Now //nolint:forbidigo // the one place that reads the clock
	start := now()
	return steadyClock(now, func() time.Duration { return time.Since(start) })
}
