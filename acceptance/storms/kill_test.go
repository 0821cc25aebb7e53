//go:build acceptance

package storms

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// stormTime is how long the plugin is killed over and over: 30 s, or the
// duration in STORM, as in
//
//	STORM=2m make acceptance SUITE=storms
func stormTime(t *testing.T) time.Duration {
	t.Helper()
	given := os.Getenv("STORM")
	if given == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(given)
	if err != nil {
		t.Fatalf("STORM: %v", err)
	}
	return d
}

const (
	stormSeed   = 20260105
	stormPeriod = 5 * time.Second // between two tokens
	tightLimit  = 5               // requests that the ledger allows the second credential
)

// TestPluginKilledAtRandom kills the plugin while readers read, at moments that a
// fixed seed chooses. Tokens are due every 5 s and Autopay takes 0.7 s over each,
// so some requests are lost in flight. One credential has no request limit; the
// simulator bans it when it gets more than one token per period and one per kill.
// The other soon reaches its limit; the simulator bans it when it gets more tokens
// than that.
func TestPluginKilledAtRandom(t *testing.T) {
	t.Parallel()
	length := stormTime(t)
	random := rand.New(rand.NewPCG(stormSeed, stormSeed))
	var pauses []time.Duration // before each kill
	for sum := time.Duration(0); ; {
		pause := 200*time.Millisecond + time.Duration(random.Int64N(int64(2300*time.Millisecond)))
		if sum += pause; sum > length {
			break
		}
		pauses = append(pauses, pause)
	}
	allowed := 2 + int(length/stormPeriod) + len(pauses)

	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	free, tight := harness.StartAutopayBanning(t, allowed), harness.StartAutopayBanning(t, tightLimit)
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
	for _, pause := range pauses {
		time.Sleep(pause)
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

	for name, b := range map[string]*books{"": freeBooks, "tight": tightBooks} {
		if b.dead > 0 {
			t.Errorf("%q: %d dead tokens were read", name, b.dead)
		}
		for text, n := range b.errors {
			if !fromTheKill(text) && (name == "" || !strings.Contains(text, "token_request_limit")) {
				t.Errorf("%q: %d reads failed: %s", name, n, text)
			}
		}
	}
	if gap := freeBooks.end(time.Now()); gap > 5*time.Second {
		t.Errorf("no token for %v", gap)
	}
	for _, want := range []struct {
		name string
		p    *harness.Autopay
		cred harness.Credential
		most int
	}{
		{"default", free, freeCred, 2 + int(took/stormPeriod) + len(pauses)},
		{"tight", tight, tightCred, tightLimit},
	} {
		asked := want.p.Requests(want.cred.ID)
		if asked > want.most {
			t.Errorf("%s: Autopay was asked %d times, at most %d are right", want.name, asked, want.most)
		}
		// A request under way is in storage already, and in the status when it has ended.
		harness.Eventually(t, 5*time.Second, fmt.Sprintf("%s: the ledger holds the %d requests that Autopay got", want.name, asked), func() bool {
			return int(harness.Integer(t, m.Read(t, "status/"+want.name).Data, "token_requests_24h")) >= asked
		})
		if want.p.Banned("") {
			t.Errorf("%s: banned", want.name)
		}
	}
	if least := int(took / stormPeriod / 2); free.Issued(freeCred.ID) < least {
		t.Errorf("%d tokens in %v: they are not replaced every %v", free.Issued(freeCred.ID), took, stormPeriod)
	}
	m.Read(t, "token").Want(t, "after the storm", http.StatusOK)
	t.Logf("FIGURE: plugin killed -9 %d times in %v (STORM=%v, seed %d), %d of them with a request in flight: %d reads, %d dead tokens; "+
		"requests to Autopay %d, %d scheduled; with token_request_limit %d: %d; no ban; longest gap %v",
		len(pauses), took.Round(time.Second), length, stormSeed, lostInFlight, freeBooks.good+tightBooks.good, freeBooks.dead+tightBooks.dead,
		free.Requests(freeCred.ID), 1+int(took/stormPeriod), tightLimit, tight.Requests(tightCred.ID),
		freeBooks.end(time.Now()).Round(10*time.Millisecond))
}

// fromTheKill reports whether an error is what Vault answers when the plugin
// process dies during a request.
func fromTheKill(text string) bool {
	return strings.HasPrefix(text, "500 ") && slices.ContainsFunc([]string{
		"rpc error: code = Unavailable",
		"rpc error: code = Canceled",
		"plugin is shut down",
		"plugin exited before we could connect",
		"Unrecognized remote plugin message", // killed while it starts
		"connection refused",
		"context canceled",
	}, func(words string) bool { return strings.Contains(text, words) })
}
