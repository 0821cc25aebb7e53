//go:build acceptance

package bench

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// A p99 during a refresh may be this many times the p99 before it.
const mostDuringRefresh = 1.5

// TestSlowRefresh has 200 readers while Autopay takes 5 s over every refresh. It
// needs the machine for itself, so it is not parallel.
func TestSlowRefresh(t *testing.T) {
	const readers = 200
	ratio, slowest := readDuringRefresh(t, readers, 5)
	t.Logf("FIGURE: %d readers, Autopay takes 5 s over a refresh: p99 meanwhile %s times that before, slowest read %v",
		readers, ratio.text(2), slowest.Round(time.Millisecond))
	if ratio.median > mostDuringRefresh {
		t.Errorf("p99 during a refresh is %s times the one before, at most %.1f is right", ratio.text(2), mostDuringRefresh)
	}
}

// readDuringRefresh compares the p99 of reads during each of several slow refreshes
// with that of reads right before it, so that other load on the machine affects
// both. It fails the test if a read waits for a refresh.
func readDuringRefresh(t *testing.T, readers, refreshes int) (during figure, slowest time.Duration) {
	t.Helper()
	const delay, period = 5 * time.Second, 7 * time.Second
	m := harness.EnableAt(t, startVault(t), "autopay")
	sim := harness.StartAutopayBanning(t, 0)
	sim.SetLifetime(10 * time.Minute)
	m.MustWrite(t, "config", sim.NewCredential().Config("rotation_period", period.String()))
	sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: delay})

	steady := time.Now().Add(time.Second)                                        // when all connections are open
	end := time.Now().Add(period*time.Duration(refreshes) + delay + time.Second) // before one more refresh
	samples := readUntil(t, m.Server, []string{m.At + "/token"}, readers, end)
	slowest = slices.MaxFunc(samples, func(a, b sample) int { return cmp.Compare(a.took, b.took) }).took
	if slowest > delay*9/10 {
		t.Errorf("a read took %v where a refresh takes %v: it waited for it", slowest, delay)
	}
	var before, slow []float64
	log := sim.Log()
	if len(log) <= refreshes {
		t.Fatalf("%d requests, want one for the config write and %d refreshes", len(log), refreshes)
	}
	for _, refresh := range log[1 : refreshes+1] {
		answered := refresh.Time.Add(refresh.Duration)
		before = append(before, p99(between(t, samples, steady, refresh.Time)))
		slow = append(slow, p99(between(t, samples, refresh.Time, answered)))
		steady = answered
	}
	return ratio(slow, before), slowest
}
