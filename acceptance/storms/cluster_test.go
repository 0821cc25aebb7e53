//go:build acceptance

package storms

import (
	"net/http"
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
	longBooks, shortBooks, vault := newBooks(day), newBooks(minute), &gaps{}
	for _, node := range nodes {
		s.read(2, node, m.At+"/token", longBooks)
		s.read(1, node, m.At+"/token/short", shortBooks)
		s.control(node, vault)
	}

	var ours, vaults, added time.Duration // the longest gaps
	lose := func(how string, lose func(*harness.Server)) {
		for round := range failovers {
			time.Sleep(time.Second) // a pause in which all nodes answer
			active := nodes.Active(t)
			longBooks.since(time.Now())
			vault.since(time.Now())
			lose(active)
			nodes.Settle(t)
			gap, vaultGap := longBooks.end(time.Now()), vault.end(time.Now())
			ours, vaults, added = max(ours, gap), max(vaults, vaultGap), max(added, gap-vaultGap)
			t.Logf("%s %d: no token for %v, no Vault for %v", how, round+1, gap.Round(time.Millisecond), vaultGap.Round(time.Millisecond))
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
		harness.Eventually(t, harness.StartWithin, "the node is still active", func() bool { return nodes.Active(t) != active })
	})

	s.stop()
	took := time.Since(began)
	longBooks.check(t)
	shortBooks.check(t)
	if n := len(longBooks.seen()); n != 1 {
		t.Errorf("%d different tokens where one is good for 24 h", n)
	}
	day.WantRequests(t, long, 1)
	scheduled := 1 + int(took/period)
	asked := minute.Requests(short.ID)
	if most := scheduled + failovers; asked > most {
		t.Errorf("Autopay was asked %d times, at most %d were needed", asked, most)
	}
	if asked < scheduled/2 {
		t.Errorf("Autopay was asked %d times in %v: the token is not replaced every %v", asked, took, period)
	}
	if most := time.Second; added > most {
		t.Errorf("readers had no token for %v longer than they had no Vault", added)
	}
	t.Logf("FIGURE: 3 raft nodes, active killed %d times and stepped down %d times in %v: %d reads of one token, %d dead tokens; "+
		"requests to Autopay: 24 h token %d, 10 s token %d of %d scheduled; longest gap %v, Vault's own %v, added at most %v; %d errors, all Vault's own",
		failovers, failovers, took.Round(time.Second), longBooks.good, longBooks.dead+shortBooks.dead, day.Requests(long.ID), asked, scheduled,
		ours.Round(10*time.Millisecond), vaults.Round(10*time.Millisecond), max(added, 0).Round(10*time.Millisecond), longBooks.own+shortBooks.own)
}

// TestRefreshDueDuringFailover kills the active node just before a token is due.
// The next node replaces the token once, and readers never get a dead one.
func TestRefreshDueDuringFailover(t *testing.T) {
	t.Parallel()
	nodes := harness.StartCluster(t)
	active := nodes.Active(t)
	m := harness.EnableAt(t, active, "autopay")
	p := harness.StartAutopay(t)
	p.SetLifetime(30 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", "10s"))
	old := m.Token(t, "")
	due := harness.Timestamp(t, old.LastVaultRotation).Add(10 * time.Second)

	s := startStorm(t)
	b := newBooks(p)
	for _, node := range nodes {
		s.read(2, node, m.At+"/token", b)
	}
	time.Sleep(time.Until(due.Add(-500 * time.Millisecond)))
	p.WantRequests(t, cred, 1)
	active.End(syscall.SIGKILL)

	harness.Eventually(t, 18*time.Second, "no new token", func() bool { return len(b.seen()) == 2 })
	late := time.Since(due)
	time.Sleep(3 * time.Second) // nothing is due until 10 s after the new token
	s.stop()
	b.check(t)
	p.WantRequests(t, cred, 2)
	for _, entry := range p.Log() {
		if entry.ClientID == cred.ID && entry.Status != http.StatusOK {
			t.Errorf("a request was answered %d", entry.Status)
		}
	}
	if asked := p.Log()[1].Time; asked.Before(due.Add(-time.Second)) {
		t.Errorf("asked at %v, due at %v: the refresh did not fall into the failover", asked, due)
	}
	t.Logf("FIGURE: active node killed 0.5 s before a refresh was due: new token read %v after it was due, %d requests, %d dead tokens, longest gap %v",
		late.Round(100*time.Millisecond), p.Requests(cred.ID), b.dead, b.end(time.Now()).Round(100*time.Millisecond))
}
