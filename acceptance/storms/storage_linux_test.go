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

// limitFiles sets the size that files of the server may grow to. With 0 every
// write to its disk fails, on any file system, and it needs no privilege. The
// limit ends with the process.
func limitFiles(t *testing.T, s *harness.Server, size uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: size, Max: ^uint64(0)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.PID()), syscall.RLIMIT_FSIZE,
		uintptr(unsafe.Pointer(&limit)), 0, 0, 0)
	if errno != 0 {
		t.Fatalf("prlimit: %v", errno)
	}
}

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
	limitFiles(t, sick, 0)
	time.Sleep(2 * time.Second)
	b.since(time.Now())
	p.WantRequests(t, cred, 1)

	harness.Eventually(t, 30*time.Second, "no new token", func() bool { return len(b.seen()) == 2 })
	late, gap := time.Since(due), b.end(time.Now())
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
	t.Logf("FIGURE: disk of the active of 3 raft nodes refuses all writes: %d reads, %d dead tokens, longest gap %v (Vault's election); "+
		"due refresh done by the next node %v after it was due; %d requests to Autopay, none too many",
		b.good, b.dead, gap.Round(10*time.Millisecond), late.Round(10*time.Millisecond), p.Requests(cred.ID))
}

// maxEntry is the smallest max_entry_size that Vault's own entries fit in.
const maxEntry = "16384"

// TestStorageRefusesWrites makes Vault's storage refuse large entries. A config
// that can't be stored is answered with a 500 that names the operation, and
// changes nothing. A token that can't be stored is served from memory.
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
	harness.Eventually(t, 2*time.Second, "the new token is not served", func() bool { return m.Token(t, "").AccessToken == big })
	p.WantRequests(t, cred, 2)

	// The token is due again after 5 s. The ledger can't be stored, so no request is
	// sent, and a warning tells readers why.
	harness.Eventually(t, 8*time.Second, "no warning", func() bool { return m.Read(t, "token").Warnings() != "" })
	if a := m.Read(t, "token"); !strings.Contains(a.Warnings(), notStored) || a.Data["access_token"] != big {
		t.Errorf("read: warnings %.300q, want one that names the operation", a.Warnings())
	}
	if a := m.Read(t, "status"); a.Data["state"] != "degraded" || !strings.Contains(a.Data["last_error"].(string), notStored) {
		t.Errorf("status %.500s", a)
	}
	p.WantRequests(t, cred, 2)

	// Once storage takes large entries again, one request replaces the token that
	// was in memory only.
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

// restartWith restarts the server with a line added to its storage stanza. It
// replaces the line added before.
func restartWith(t *testing.T, s *harness.Server, line string) {
	t.Helper()
	s.Reconfigure(t, func(config string) string {
		text, _, _ := strings.Cut(config, addedLine)
		return strings.TrimSuffix(text, "}\n") + addedLine + line + "\n}\n"
	})
}

// notStored is in the error of a token that can't be stored.
const notStored = "to storage"

const addedLine = "# added:\n"
