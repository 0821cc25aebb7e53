//go:build acceptance

package storms

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// limitFiles sets the size up to which the server may write to a file: with 0
// every write to its disk fails, whichever file system it is on, and no
// privilege is needed for it. The end of the process ends the limit.
func limitFiles(t *testing.T, s *harness.Server, size uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: size, Max: ^uint64(0)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.PID()), syscall.RLIMIT_FSIZE,
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		t.Fatalf("prlimit: %v", errno)
	}
}

// TestDiskOfActiveNodeFails takes all writing from the active node of three.
// The live token goes on being served, first by this node, then by the one
// that Vault puts in its place; no request leaves that is not in the ledger, so
// that the refresh which came in between asks Autopay once. With its disk back
// the node serves as before.
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
	limitFiles(t, sick, 0)
	time.Sleep(2 * time.Second)
	b.since(time.Now())
	p.WantRequests(t, cred, 1)

	harness.Eventually(t, 30*time.Second, "no new token", func() bool { return len(b.seen()) == 2 })
	late, gap := time.Since(due), b.end(time.Now())
	if nodes.Active(t) == sick {
		t.Error("the node without a disk still leads")
	}
	// Vault may have ended by itself: raft can't go on without a disk.
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
	t.Logf("FIGURE: disk of the active of 3 raft nodes refuses all writes: %d reads, %d dead tokens, longest gap %v (Vault's election); "+
		"due refresh done by the next node %v after it was due; %d requests to Autopay, none too many",
		b.good, b.dead, gap.Round(10*time.Millisecond), late.Round(10*time.Millisecond), p.Requests(cred.ID))
}

// maxEntry is the smallest max_entry_size in which Vault's own entries fit.
const maxEntry = "16384"

// TestStorageRefusesWrites makes Vault's storage refuse what the engine
// writes, by size: a write is answered with a 500 that names the operation and
// changes nothing, and a token that can't be stored is served from memory.
func TestStorageRefusesWrites(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	restartWith(t, s, "max_entry_size = "+maxEntry)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	p.SetLifetime(20 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", "5s"))
	old := m.Snapshot(t, p, cred)

	roots := strings.Repeat(harness.OtherCert(t), 40)
	a := m.Write(t, "config", cred.Unverified("ca_cert", roots))
	a.Want(t, "a config that can't be stored", http.StatusInternalServerError, "storing the credential")
	if strings.Contains(a.Errors(), "CERTIFICATE") {
		t.Error("the data is in the error")
	}
	m.WantUnchanged(t, p, cred, old, 0)

	// A token that can't be stored: it is served from memory, and Autopay is
	// not asked for another.
	big := strings.Repeat("a", 20_000)
	p.SetFault(autopaysim.Fault{
		Kind: autopaysim.FaultBody, Times: 1,
		Body: `{"access_token":"` + big + `","scope":"s","expires_in":600,"token_type":"Bearer"}`,
	})
	harness.Eventually(t, 8*time.Second, "no refresh", func() bool { return p.Requests(cred.ID) == 2 })
	harness.Eventually(t, 2*time.Second, "the new token is not served", func() bool { return m.Token(t, "").AccessToken == big })
	p.WantRequests(t, cred, 2)

	// It is due again after 5 s. The ledger can't be stored, so nothing leaves,
	// and readers are told why.
	harness.Eventually(t, 8*time.Second, "no warning", func() bool { return m.Read(t, "token").Warnings() != "" })
	if a := m.Read(t, "token"); !strings.Contains(a.Warnings(), notStored) || a.Data["access_token"] != big {
		t.Errorf("read: warnings %.300q, want one that names the operation", a.Warnings())
	}
	if a := m.Read(t, "status"); a.Data["state"] != "degraded" || !strings.Contains(a.Data["last_error"].(string), notStored) {
		t.Errorf("status %.500s", a)
	}
	p.WantRequests(t, cred, 2)

	// With room again, one request makes up for the token that only memory had.
	restartWith(t, s, "")
	if now := m.Token(t, "").AccessToken; !p.Valid(now) {
		t.Error("a dead token is served")
	}
	time.Sleep(2 * time.Second)
	asked := p.Requests(cred.ID)
	if asked > 3 {
		t.Errorf("Autopay was asked %d times, 3 are needed", asked)
	}
	t.Logf("FIGURE: storage refuses what is written: 500 that names the operation, the live token goes on; the token it refuses is served "+
		"from memory, no request while the ledger can't be stored; %d requests in all, with room again", asked)
}

// restartWith restarts the server with a line added to its storage stanza, in
// the place of the one added before.
func restartWith(t *testing.T, s *harness.Server, line string) {
	t.Helper()
	s.Reconfigure(t, func(config string) string {
		text, _, _ := strings.Cut(config, addedLine)
		return strings.TrimSuffix(text, "}\n") + addedLine + line + "\n}\n"
	})
}

// notStored names the operation where a token can't be stored.
const notStored = "storing the token entry"

const addedLine = "# added:\n"
