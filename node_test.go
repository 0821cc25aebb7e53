package main

import (
	"context"
	"testing"
	"testing/synctest"
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

// TestCleanDoesNotWaitForHangingStorage: Vault holds a lock for every mount in the
// process while it calls Clean.
func TestCleanDoesNotWaitForHangingStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		time.Sleep(2 * time.Minute)
		e.storage.putTakes.Store(int64(time.Minute)) // heeds no context
		go func() { _, _ = e.write("rotate", nil) }()
		synctest.Wait()
		begun := time.Now()
		e.clean(t.Context())
		if took := time.Since(begun); took > cleanTimeout {
			t.Errorf("clean took %s", took)
		}
		time.Sleep(2 * time.Minute) // the write ends
	})
}

// TestTheMountOutlivesTheCallThatMadeIt: Vault ends the context of Setup once it has
// been answered.
func TestTheMountOutlivesTheCallThatMadeIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		n := newNode(ctx, &logical.BackendConfig{}, options{})
		defer n.stop()
		end()
		if !n.spawn(func(context.Context) {}) {
			t.Error("no job starts")
		}
	})
}
