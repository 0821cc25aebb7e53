//go:build acceptance

package storms

import (
	"math/rand/v2"
	"net/http"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

const (
	kills      = 23
	killPeriod = 5 * time.Second // between two tokens
	tightLimit = 5               // requests that the ledger allows the second credential

	// fromTheKill matches what Vault answers when the plugin process dies during a
	// request, or while it starts.
	fromTheKill = `^500 .*(rpc error: code = (Unavailable|Canceled)|plugin is shut down|` +
		`plugin exited before we could connect|Unrecognized remote plugin message|connection refused)`
)

// TestPluginKilledAtRandom kills the plugin while readers read, at moments that a
// fixed seed chooses. Tokens are due every 5 s and Autopay takes 0.7 s over each,
// so some requests are lost in flight. One credential has no request limit; the
// simulator bans it when it gets more than one token per period and one per kill.
// The other soon reaches its limit; the simulator bans it when it gets more tokens
// than that.
func TestPluginKilledAtRandom(t *testing.T) {
	t.Parallel()
	pauses := rand.New(rand.NewPCG(20260105, 20260105)) // before each kill, 0.2 to 2.5 s
	const longest = 2500 * time.Millisecond
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	free := harness.StartAutopayBanning(t, 2+kills+int(kills*longest/killPeriod))
	tight := harness.StartAutopayBanning(t, tightLimit)
	freeCred, tightCred := free.NewCredential(), tight.NewCredential()
	for _, p := range []*harness.Autopay{free, tight} {
		p.SetLifetime(20 * time.Second)
		p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 700 * time.Millisecond})
	}
	began := time.Now()
	m.MustWrite(t, "config", freeCred.Config("rotation_period", "5s", "token_request_limit", 0))
	m.MustWrite(t, "config/tight", tightCred.Config("rotation_period", "5s", "token_request_limit", tightLimit))

	readers := startStorm(t)
	freeBooks, tightBooks := newBooks(free), newBooks(tight)
	readers.read(6, s, m.At+"/token", freeBooks)
	readers.read(2, s, m.At+"/token/tight", tightBooks)
	lostInFlight := 0
	for range kills {
		time.Sleep(200*time.Millisecond + time.Duration(pauses.Int64N(int64(2300*time.Millisecond))))
		var pids []int
		harness.Eventually(t, 10*time.Second, "the plugin does not come back", func() bool {
			pids = s.PluginPIDs(t)
			return len(pids) > 0
		})
		if free.Stats().InFlight > 0 {
			lostInFlight++
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have ended
		}
	}
	time.Sleep(2 * time.Second) // it must serve again
	readers.stop()
	took := time.Since(began)

	freeBooks.check(t, fromTheKill)
	tightBooks.check(t, fromTheKill, "token_request_limit")
	gap := freeBooks.gap()
	if gap > 5*time.Second {
		t.Errorf("no token for %v", gap)
	}
	for _, want := range []struct {
		name string
		p    *harness.Autopay
		cred harness.Credential
		most int
	}{
		{"default", free, freeCred, 2 + kills + int(took/killPeriod)},
		{"tight", tight, tightCred, tightLimit},
	} {
		asked := want.p.Requests(want.cred.ID)
		if asked > want.most {
			t.Errorf("%s: Autopay was asked %d times, at most %d are right", want.name, asked, want.most)
		}
		// A request under way is in storage already, and in the status when it has ended.
		harness.Eventually(t, 5*time.Second, "requests are missing in the ledger: "+want.name, func() bool {
			return int(harness.Integer(t, m.Read(t, "status/"+want.name).Data, "token_requests_24h")) >= asked
		})
	}
	if least := int(took / killPeriod / 2); free.Issued(freeCred.ID) < least {
		t.Errorf("%d tokens in %v: they are not replaced every %v", free.Issued(freeCred.ID), took, killPeriod)
	}
	m.Read(t, "token").Want(t, "after the storm", http.StatusOK)
	t.Logf("FIGURE: plugin killed -9 %d times in %v, %d of them with a request in flight: %d reads, %d dead tokens; "+
		"requests to Autopay %d, %d scheduled; with token_request_limit %d: %d; longest gap %v",
		kills, took.Round(time.Second), lostInFlight, freeBooks.good+tightBooks.good, freeBooks.dead+tightBooks.dead,
		free.Requests(freeCred.ID), 1+int(took/killPeriod), tightLimit, tight.Requests(tightCred.ID), gap)
}
