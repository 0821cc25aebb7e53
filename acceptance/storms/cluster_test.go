//go:build acceptance

package storms

import (
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

const failovers = 5 // of each kind

// TestFailoverStorm kills the active node of three, and has it step down, again
// and again while readers read at all nodes. A token that is not due stays the
// same. A token with a period of 10 s is replaced on time. Readers go without a
// token only while Vault itself is away.
func TestFailoverStorm(t *testing.T) {
	t.Parallel()
	nodes := harness.StartCluster(t)
	m := harness.EnableAt(t, nodes.Active(t), "autopay")

	day := harness.StartAutopay(t)
	long := day.NewCredential()
	m.MustWrite(t, "config", long.Config())

	const period = 10 * time.Second
	minute := harness.StartAutopayBanning(t, 60)
	minute.SetLifetime(time.Minute)
	short := minute.NewCredential()
	began := time.Now()
	m.MustWrite(t, "config/short", short.Config("rotation_period", period.String()))

	s := startStorm(t)
	longBooks, shortBooks, vault := newBooks(day), newBooks(minute), newBooks(nil)
	for _, node := range nodes {
		s.read(2, node, m.At+"/token", longBooks)
		s.read(1, node, m.At+"/token/short", shortBooks)
		s.read(1, node, "auth/token/lookup-self", vault)
	}

	var ours, vaults, added time.Duration // the longest gaps
	lose := func(how string, lose func(*harness.Server)) {
		for round := range failovers {
			time.Sleep(time.Second) // a pause in which all nodes answer
			active := nodes.Active(t)
			longBooks.since()
			vault.since()
			lose(active)
			nodes.Settle(t)
			gap, vaultGap := longBooks.gap(), vault.gap()
			ours, vaults, added = max(ours, gap), max(vaults, vaultGap), max(added, gap-vaultGap)
			t.Logf("%s %d: no token for %v, no Vault for %v", how, round+1, gap, vaultGap)
		}
	}
	lose("killed", func(active *harness.Server) {
		active.End(syscall.SIGKILL)
		nodes.Active(t)
		active.Restart(t, syscall.SIGKILL)
	})
	lose("stepped down", func(active *harness.Server) {
		if err := active.Root().Sys().StepDownWithContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, harness.StartWithin, "the node is still active", func() bool {
			return nodes.Active(t) != active
		})
	})

	s.stop()
	took := time.Since(began)
	longBooks.check(t)
	shortBooks.check(t)
	if n := len(longBooks.tokens); n != 1 {
		t.Errorf("%d different tokens where one is good for 24 h", n)
	}
	day.WantRequests(t, long, 1)
	scheduled, asked := 1+int(took/period), minute.Requests(short.ID)
	if asked < scheduled/2 || asked > scheduled+failovers {
		t.Errorf("Autopay was asked %d times in %v, %d requests were scheduled", asked, took, scheduled)
	}
	if added > time.Second {
		t.Errorf("readers had no token for %v longer than they had no Vault", added)
	}
	t.Logf("FIGURE: 3 raft nodes, active killed %d times and stepped down %d times in %v: %d reads of one token, "+
		"%d dead tokens; requests for the 10 s token: %d, %d scheduled; longest gap %v, Vault's own %v, added at most %v",
		failovers, failovers, took.Round(time.Second), longBooks.good, longBooks.dead+shortBooks.dead, asked, scheduled,
		ours, vaults, max(added, 0))
}
