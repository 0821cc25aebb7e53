//go:build acceptance

package acceptance

import (
	"net/http"
	"syscall"
	"testing"
	"time"
)

const failovers = 5 // of each kind

// TestFailoverStorm kills and steps down the active node of three, again and
// again, under readers at all nodes. A token that is not due goes on; one that
// is replaced every 10 s is replaced on time; and readers miss nothing but what
// Vault itself is away for.
func TestFailoverStorm(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t)
	m := enableAt(t, nodes.active(t), "autopay")

	day := startProvider(t)
	long := day.newCredential()
	m.mustWrite(t, "config", long.config())

	const period = 10 * time.Second
	minute := startProviderBanning(t, 60)
	minute.SetLifetime(time.Minute)
	short := minute.newCredential()
	began := time.Now()
	m.mustWrite(t, "config/short", short.config("rotation_period", period.String()))

	s := startStorm(t)
	longBooks, shortBooks, vault := newBooks(day), newBooks(minute), &gaps{}
	for _, node := range nodes {
		s.read(2, node, m.at+"/token", longBooks)
		s.read(1, node, m.at+"/token/short", shortBooks)
		s.control(node, vault)
	}

	var ours, vaults, added time.Duration // the longest gaps
	lose := func(how string, lose func(*server)) {
		for round := range failovers {
			time.Sleep(time.Second) // a time of peace, in which all nodes serve
			active := nodes.active(t)
			longBooks.since(time.Now())
			vault.since(time.Now())
			lose(active)
			nodes.settle(t)
			gap, vaultGap := longBooks.end(time.Now()), vault.end(time.Now())
			ours, vaults, added = max(ours, gap), max(vaults, vaultGap), max(added, gap-vaultGap)
			t.Logf("%s %d: no token for %v, no Vault for %v", how, round+1, gap.Round(time.Millisecond), vaultGap.Round(time.Millisecond))
		}
	}
	lose("killed", func(active *server) {
		active.end(syscall.SIGKILL)
		nodes.active(t)
		if err := active.start(); err != nil {
			t.Fatal(err)
		}
		active.mustUnseal(t)
	})
	lose("stepped down", func(active *server) {
		if err := active.root().Sys().StepDownWithContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, startWithin, "the node goes on leading", func() bool { return nodes.active(t) != active })
	})

	s.stop()
	took := time.Since(began)
	longBooks.check(t)
	shortBooks.check(t)
	if n := len(longBooks.seen()); n != 1 {
		t.Errorf("%d different tokens where one is good for 24 h", n)
	}
	day.asked(t, long, 1)
	scheduled := 1 + int(took/period)
	asked := minute.Requests(short.id)
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
		failovers, failovers, took.Round(time.Second), longBooks.good, longBooks.dead+shortBooks.dead, day.Requests(long.id), asked, scheduled,
		ours.Round(10*time.Millisecond), vaults.Round(10*time.Millisecond), max(added, 0).Round(10*time.Millisecond), longBooks.own+shortBooks.own)
}

// settle waits until every node is in its place: no more is to come of what
// happened to one.
func (c cluster) settle(t *testing.T) {
	t.Helper()
	for _, node := range c {
		if err := node.ready(); err != nil {
			t.Fatalf("%s: %v", node.name, err)
		}
	}
}

// TestRefreshDueDuringFailover kills the active node just before a token is
// due: the next node replaces it once, and readers never have a dead one.
func TestRefreshDueDuringFailover(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t)
	active := nodes.active(t)
	m := enableAt(t, active, "autopay")
	p := startProvider(t)
	p.SetLifetime(30 * time.Second)
	cred := p.newCredential()
	m.mustWrite(t, "config", cred.config("rotation_period", "10s"))
	old := m.token(t, "")
	due := timestamp(t, old.LastVaultRotation).Add(10 * time.Second)

	s := startStorm(t)
	b := newBooks(p)
	for _, node := range nodes {
		s.read(2, node, m.at+"/token", b)
	}
	time.Sleep(time.Until(due.Add(-500 * time.Millisecond)))
	p.asked(t, cred, 1)
	active.end(syscall.SIGKILL)

	eventually(t, 18*time.Second, "no new token", func() bool { return len(b.seen()) == 2 })
	late := time.Since(due)
	time.Sleep(3 * time.Second) // until 10 s after the new one, nothing is due
	s.stop()
	b.check(t)
	p.asked(t, cred, 2)
	for _, entry := range p.Log() {
		if entry.ClientID == cred.id && entry.Status != http.StatusOK {
			t.Errorf("a request was answered %d", entry.Status)
		}
	}
	if asked := p.Log()[1].Time; asked.Before(due.Add(-time.Second)) {
		t.Errorf("asked at %v, due at %v: the refresh did not fall into the failover", asked, due)
	}
	t.Logf("FIGURE: active node killed 0.5 s before a refresh was due: new token read %v after it was due, %d requests, %d dead tokens, longest gap %v",
		late.Round(100*time.Millisecond), p.Requests(cred.id), b.dead, b.end(time.Now()).Round(100*time.Millisecond))
}
