//go:build acceptance

package storms

import (
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestDiskOfActiveNodeFails makes every write of the active node of three fail.
// This node goes on serving the live token, and so does the one that Vault puts
// in its place. A request that can't be entered in the ledger is not sent, so the
// refresh that falls due meanwhile asks Autopay once. When its disk works again,
// the node serves the new token.
func TestDiskOfActiveNodeFails(t *testing.T) {
	t.Parallel()
	nodes := harness.StartCluster(t)
	sick := nodes.Active(t)
	m := harness.EnableAt(t, sick, "autopay")
	p := harness.StartAutopay(t)
	p.SetLifetime(40 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", "12s"))
	old := m.Token(t, "")
	due := harness.Timestamp(t, old.LastVaultRotation).Add(12 * time.Second)
	// Vault refuses all requests while it can't write its audit.
	if err := sick.Root().Sys().DisableAuditWithContext(t.Context(), "file"); err != nil {
		t.Fatal(err)
	}

	s := startStorm(t)
	b := newBooks(p)
	for _, node := range nodes {
		s.read(2, node, m.At+"/token", b)
	}
	// With this limit every write to a file fails, on any file system. It ends with the process.
	limit := exec.CommandContext(t.Context(), "prlimit", "--fsize=0", "--pid", strconv.Itoa(sick.PID()))
	if out, err := limit.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	time.Sleep(2 * time.Second)
	b.since()
	p.WantRequests(t, cred, 1)

	harness.Eventually(t, 30*time.Second, "no new token", func() bool { return len(b.seen()) == 2 })
	late, gap := time.Since(due), b.gap()
	if nodes.Active(t) == sick {
		t.Error("the node without a disk still leads")
	}
	// Vault may have ended by itself, because raft can't work without a disk.
	sick.End(syscall.SIGKILL)
	sick.Restart(t, syscall.SIGKILL)
	if now := m.On(sick).Token(t, "").AccessToken; now != b.seen()[1] {
		t.Error("the node that came back serves another token")
	}
	s.stop()
	b.check(t)
	p.WantRequests(t, cred, 2)
	if most := 20 * time.Second; gap > most {
		t.Errorf("no token for %v", gap)
	}
	t.Logf("FIGURE: disk of the active of 3 raft nodes refuses all writes: %d reads, %d dead tokens, longest gap %v "+
		"(Vault's election); due refresh done by the next node %v after it was due",
		b.good, b.dead, gap, late.Round(10*time.Millisecond))
}

// TestStorageRefusesWrites makes Vault's storage refuse large entries. A config
// that can't be stored is answered with a 500 that names the operation, and
// changes nothing. A token that can't be stored is served from memory.
func TestStorageRefusesWrites(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	const small = "  max_entry_size = 16384\n}\n" // Vault's own entries fit in
	s.Reconfigure(t, func(config string) string { return strings.TrimSuffix(config, "}\n") + small })
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	p.SetLifetime(20 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", "5s"))
	old := m.Snapshot(t, p, cred)

	roots := strings.Repeat(harness.OtherCert(t), 40)
	a := m.Write(t, "config", cred.Unverified("ca_cert", roots))
	a.Want(t, "a config that can't be stored", http.StatusInternalServerError, "writing config/")
	if strings.Contains(a.Errors(), "CERTIFICATE") {
		t.Error("the data is in the error")
	}
	m.WantUnchanged(t, p, cred, old, 0)

	// A token that can't be stored is served from memory, and Autopay is not asked
	// for another one.
	big := strings.Repeat("a", 20_000)
	p.SetFault(autopaysim.Fault{
		Kind: autopaysim.FaultBody, Times: 1,
		Body: `{"access_token":"` + big + `","scope":"s","expires_in":600,"token_type":"Bearer"}`,
	})
	harness.Eventually(t, 8*time.Second, "no refresh", func() bool { return p.Requests(cred.ID) == 2 })
	harness.Eventually(t, 2*time.Second, "the new token is not served", func() bool {
		return m.Token(t, "").AccessToken == big
	})
	p.WantRequests(t, cred, 2)

	const notStored = "to storage"
	// The token is due again after 5 s. The ledger can't be stored, so no request is
	// sent, and a warning tells readers why.
	harness.Eventually(t, 8*time.Second, "no warning", func() bool { return m.Read(t, "token").Warnings() != "" })
	if a := m.Read(t, "token"); !strings.Contains(a.Warnings(), notStored) || a.Data["access_token"] != big {
		t.Errorf("read: warnings %.300q, want one that names the operation", a.Warnings())
	}
	status := m.Read(t, "status")
	if status.Data["state"] != "degraded" || !strings.Contains(status.Data["last_error"].(string), notStored) {
		t.Errorf("status %.500s", status)
	}
	p.WantRequests(t, cred, 2)

	// Once storage takes large entries again, one request replaces the token that
	// was in memory only.
	s.Reconfigure(t, func(config string) string { return strings.TrimSuffix(config, small) + "}\n" })
	if now := m.Token(t, "").AccessToken; !p.Valid(now) {
		t.Error("a dead token is served")
	}
	time.Sleep(2 * time.Second)
	if asked := p.Requests(cred.ID); asked > 3 {
		t.Errorf("Autopay was asked %d times, 3 are needed", asked)
	}
}
