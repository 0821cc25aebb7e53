package main

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// TestTwoClocks asks about a time that was an hour away, after the two clocks have
// moved on.
func TestTwoClocks(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wall, monotonic time.Duration
		before          bool
		left            time.Duration
	}{
		"no time has passed":        {0, 0, true, time.Hour},
		"half an hour":              {30 * time.Minute, 30 * time.Minute, true, 30 * time.Minute},
		"shortly before":            {time.Hour - 1, time.Hour - 1, true, 1},
		"an hour":                   {time.Hour, time.Hour, false, 0},
		"the wall clock set back":   {-time.Hour, time.Hour, false, 0},
		"the wall clock set ahead":  {time.Hour, time.Minute, false, 0},
		"set ahead by ten minutes":  {20 * time.Minute, 10 * time.Minute, true, 40 * time.Minute},
		"the machine slept an hour": {time.Hour, 0, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			then := clockReading(start2000, time.Minute)
			now := clockReading(start2000.Add(test.wall), time.Minute+test.monotonic)
			for _, at := range []time.Time{then.Add(time.Hour), anchored(then, start2000.Add(time.Hour))} {
				if got := before(now, at); got != test.before {
					t.Errorf("before: %v, want %v", got, test.before)
				}
				if got := timeLeft(now, at); got != test.left {
					t.Errorf("%s left, want %s", got, test.left)
				}
			}
		})
	}
	now := clockReading(start2000, time.Minute)
	for _, far := range []time.Time{{}, time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)} {
		if got := anchored(now, far); !got.Equal(far) {
			t.Errorf("%s became %s", far, got)
		}
	}
}

func TestNoJobStartsAfterStop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := newNode(t.Context(), &logical.BackendConfig{}, options{})
		ended := false
		n.spawn(func(ctx context.Context) {
			<-ctx.Done()
			time.Sleep(cleanTimeout / 2)
			ended = true
		})
		n.stop()
		if !ended {
			t.Error("stop did not wait for the job")
		}
		if n.spawn(func(context.Context) {}) {
			t.Error("a job started after stop")
		}
	})
}
