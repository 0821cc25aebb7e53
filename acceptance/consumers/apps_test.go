//go:build acceptance

package consumers

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleApps runs the application of each language against a real Vault and the stand-in's API.
func TestExampleApps(t *testing.T) {
	t.Parallel()
	binary := filepath.Join(t.TempDir(), "app")
	tests := map[string]exampleApp{
		"go": {
			needs: []string{"go"}, check: [][]string{{"go", "build", "-o", binary, "../../examples/go"}},
			run: []string{binary}, workers: 2,
		},
		"node": {
			needs: []string{"node"},
			check: [][]string{
				{"node", "--check", "../../examples/node/tokensource.mjs"},
				{"node", "--check", "../../examples/node/demo.mjs"},
			},
			run: []string{"node", "../../examples/node/demo.mjs"}, workers: 2,
		},
		"python": {
			needs: []string{"python3"}, // which compiles what it runs
			run:   []string{"python3", "-W", "error", "../../examples/python/demo.py"}, workers: 2,
		},
		"shell": {
			needs: []string{"bash", "curl", "jq"}, check: [][]string{{"bash", "-n", "../../examples/shell/tokensource.sh"}},
			run: []string{"../../examples/shell/demo.sh"}, workers: 1, waits: true, spied: "curl",
		},
	}
	for name, app := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app.available(t)
			for _, command := range app.check {
				if out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", command, err, out)
				}
			}
			m := harness.Enable(t, harness.SharedVault(t))
			life := startAppLife(t, app, m) // the others run while this one waits
			app.losesItsToken(t, m)
			app.mayNotRead(t, m)
			life.rotations(t)
			life.revoked(t)
			life.vaultAway(t)
			life.asksForAnother(t)
			life.end(t)
		})
	}
}

// appLife is the life of an application that has the right policy. Each of its calls must be answered 200.
type appLife struct {
	exampleApp
	*process
	m     harness.Mount
	p     *harness.Autopay
	cred  harness.Credential
	vault *appVault
	key   func() string // a new token for Vault
}

func startAppLife(t *testing.T, app exampleApp, m harness.Mount) *appLife {
	t.Helper()
	p := harness.StartAutopayBanning(t, 40)
	p.SetLifetime(12 * time.Second)
	l := &appLife{exampleApp: app, m: m, p: p, cred: p.NewCredential(), vault: forApp(t, m)}
	l.key = func() string {
		return m.TokenFor(t, fmt.Sprintf(`
path "%[1]s/token"  { capabilities = ["read"] }
path "%[1]s/rotate" { capabilities = ["update"] }
`, m.At))
	}
	m.MustWrite(t, "config", l.cred.Config("rotation_period", 6))
	l.process = app.start(t, m, l.vault, post(t, p), l.key(),
		"API_BODY="+postBody, "INTERVAL_MS=200", fmt.Sprintf("WORKERS=%d", app.workers))
	return l
}

// rotations waits until three tokens or more were replaced, and replaces the application's Vault token as well.
func (l *appLife) rotations(t *testing.T) {
	t.Helper()
	l.calls(t, 1)
	old := l.keys[0]
	l.giveKey(t, l.key())
	if err := l.m.Root().Auth().Token().RevokeTreeWithContext(t.Context(), old); err != nil {
		t.Fatal(err)
	}

	// Return right after a read, so that the next step is over before the application reads again.
	l.vault.answered(t, max(4, l.vault.seen().answered+1))
	lines := l.lines(t)
	l.vault.mu.Lock()
	reads, tokens := slices.Clone(l.vault.reads), slices.Clone(l.vault.tokens)
	l.vault.mu.Unlock()
	took := reads[len(reads)-1].Sub(reads[0]).Round(100 * time.Millisecond)
	t.Logf("%d calls, %d reads of Vault in %v", len(lines), len(reads), took)
	for i := range reads[1:] {
		// The next read is after ttl + 1 s, and ttl is never below 5. The shell counts whole seconds.
		if gap := reads[i+1].Sub(reads[i]); gap < 5*time.Second {
			t.Errorf("read %d comes %v after the one before", i+2, gap)
		}
	}
	// There is one read per rotation. On a busy machine one may be late.
	slices.Sort(tokens)
	if n := len(slices.Compact(tokens)); n < len(reads)-1 {
		t.Errorf("%d reads brought %d tokens", len(reads), n)
	}
	if len(lines) < 20 {
		t.Errorf("only %d calls", len(lines))
	}
	allAre(t, lines, "200")
	if s := l.p.Stats(); s.ResourceRefused != 0 || s.DeadTokensSeen != 0 {
		t.Errorf("the API refused %d requests, %d tokens had expired", s.ResourceRefused, s.DeadTokensSeen)
	}
}

// revoked revokes the token when Vault already has the next one. All workers together read once, and each repeats its call
// once.
func (l *appLife) revoked(t *testing.T) {
	t.Helper()
	l.p.SetLifetime(time.Minute) // for what follows
	old, before := l.vault.held(), l.vault.seen()
	l.replaceSecret(t)
	l.p.Revoke(old)

	l.vault.answered(t, before.answered+1)
	l.calls(t, 4)
	after, refused := l.vault.seen(), l.p.Stats().ResourceRefused
	if after.reads != before.reads+1 || after.rotates != 0 {
		t.Errorf("%d reads, %d rotations for a 401, want 1 and 0", after.reads-before.reads, after.rotates)
	}
	if refused < 1 || refused > l.workers {
		t.Errorf("the API answered 401 %d times, want 1 to %d", refused, l.workers)
	}
	allAre(t, l.lines(t), "200")
}

// replaceSecret has the operator write a new secret, which replaces the token at once.
func (l *appLife) replaceSecret(t *testing.T) {
	t.Helper()
	l.cred.Secret = harness.NewSecret()
	l.p.SetClient(l.cred.ID, l.cred.Secret)
	l.m.MustWrite(t, "config", harness.Fields("client_secret", l.cred.Secret))
}

// vaultAway makes the next read hang and then fail, and those after it fail. Calls continue with the token in hand.
func (l *appLife) vaultAway(t *testing.T) {
	t.Helper()
	before := l.vault.seen()
	release := make(chan struct{})
	var failed atomic.Int32
	l.vault.setMeddle(func(w http.ResponseWriter, _ *http.Request) bool {
		<-release
		if failed.Add(1)%2 == 0 {
			panic(http.ErrAbortHandler) // which closes the connection
		}
		http.Error(w, `{"errors":["Vault is sealed"]}`, http.StatusServiceUnavailable)
		return true
	})
	harness.Eventually(t, time.Minute, "no re-read", func() bool { return l.vault.seen().reads > before.reads })
	if !l.waits {
		l.calls(t, 10) // while the read hangs
	}
	if n := l.vault.seen().reads - before.reads; n != 1 {
		t.Errorf("%d reads at once", n)
	}
	close(release)
	harness.Eventually(t, time.Minute, "no further read after a failed one", func() bool { return failed.Load() >= 3 })
	l.calls(t, 2)
	l.m.MustWrite(t, "config", harness.Fields("rotation_period", 50)) // the token that is read next stays
	l.vault.setMeddle(nil)

	harness.Eventually(t, time.Minute, "no read when Vault is back", func() bool { return l.vault.seen().answered > before.answered })
	allAre(t, l.lines(t), "200")
}

// asksForAnother revokes the token that Vault still has. The application asks Vault to rotate it. The token is too young for
// that, but the operator replaces it at the same time.
func (l *appLife) asksForAnother(t *testing.T) {
	t.Helper()
	before, refused := l.vault.seen(), l.p.Stats().ResourceRefused
	replaced := make(chan struct{})
	l.vault.setMeddle(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/rotate") {
			<-replaced
		}
		return false
	})
	l.p.Revoke(l.vault.held())
	harness.Eventually(t, time.Minute, "no request for a rotation", func() bool { return l.vault.seen().rotates > 0 })
	l.replaceSecret(t)
	close(replaced)

	l.vault.answered(t, before.answered+2)
	l.calls(t, 4)
	after := l.vault.seen()
	if after.reads != before.reads+2 || after.rotates != 1 {
		t.Errorf("%d reads, %d rotations for a 401, want 2 and 1", after.reads-before.reads, after.rotates)
	}
	if n := l.p.Stats().ResourceRefused - refused; n < 1 || n > l.workers {
		t.Errorf("the API answered 401 %d times, want 1 to %d", n, l.workers)
	}
}

func (l *appLife) end(t *testing.T) {
	t.Helper()
	lines := l.process.end(t, true)
	allAre(t, lines, "200")
	// Each 401 was followed by one repeated call, and there were no other calls.
	stats := l.p.Stats()
	if stats.ResourceRequests != len(lines)+stats.ResourceRefused {
		t.Errorf("%d requests to the API for %d calls and %d answers 401",
			stats.ResourceRequests, len(lines), stats.ResourceRefused)
	}
	if stats.DeadTokensSeen != 0 {
		t.Errorf("the API saw %d expired tokens", stats.DeadTokensSeen)
	}
	seen := l.vault.seen()
	if seen.most != 1 {
		t.Errorf("%d requests to Vault at once", seen.most)
	}
	audited := len(l.m.AuditedReads(t, l.m.At+"/token"))
	if audited != seen.answered {
		t.Errorf("%d reads in the audit log, want the %d that were answered", audited, seen.answered)
	}
	t.Logf("%d calls, %d of them repeated after a 401, %d dead tokens seen, %d reads in Vault's audit log",
		len(lines), stats.ResourceRefused, stats.DeadTokensSeen, audited)
}

// losesItsToken revokes the token of an application whose policy does not allow it to rotate. The application passes the 401
// on and does not ask Vault again.
func (app exampleApp) losesItsToken(t *testing.T, m harness.Mount) {
	t.Helper()
	p := harness.StartAutopay(t)
	m.MustWrite(t, "config/oslo", p.NewCredential().Config())
	v := forApp(t, m)
	key := m.TokenFor(t, fmt.Sprintf(`path "%s/token/oslo" { capabilities = ["read"] }`, m.At))
	const count = 12
	a := app.start(t, m, v, p.ResourceURL(), key,
		"AUTOPAY_NAME=oslo", "INTERVAL_MS=100", fmt.Sprintf("COUNT=%d", count))
	if lines := a.calls(t, 1); lines[0] != "200" {
		t.Fatalf("first call: %s", lines[0])
	}
	p.Revoke(v.held())

	lines := a.end(t, false)
	lost := slices.Index(lines, "401")
	if len(lines) != count || lost < 1 {
		t.Fatalf("%d calls, the first 401 at %d: %v", len(lines), lost, lines)
	}
	allAre(t, lines[:lost], "200")
	allAre(t, lines[lost:], "401")
	if seen := v.seen(); seen.reads != 2 || seen.rotates != 1 {
		t.Errorf("%d reads and %d rotations, want the first read, then one of each", seen.reads, seen.rotates)
	}
	if n := p.Stats().ResourceRequests; n != count {
		t.Errorf("%d requests to the API for %d calls: repeated with the same token", n, count)
	}
}

// mayNotRead gives an application the wrong policy, then the right one.
func (app exampleApp) mayNotRead(t *testing.T, m harness.Mount) {
	t.Helper()
	p := harness.StartAutopay(t)
	m.MustWrite(t, "config/bergen", p.NewCredential().Config())
	v := forApp(t, m)
	key := m.TokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.At))
	a := app.start(t, m, v, p.ResourceURL(), key, "AUTOPAY_NAME=bergen", "INTERVAL_MS=100")
	lines := a.calls(t, 20)
	allAre(t, lines, "403", "permission denied", "policy", m.At+"/token/bergen")
	if seen := v.seen(); seen.reads < 2 || seen.reads > 6 || seen.rotates != 0 {
		t.Errorf("%d reads and %d rotations in %d calls, want 2 to 6 and none", seen.reads, seen.rotates, len(lines))
	}
	if n := p.Stats().ResourceRequests; n != 0 {
		t.Errorf("%d requests to the API without a token", n)
	}

	a.giveKey(t, m.TokenFor(t, fmt.Sprintf(`path "%s/token/bergen" { capabilities = ["read"] }`, m.At)))
	harness.Eventually(t, time.Minute, "no token with the right policy", func() bool {
		lines := a.lines(t)
		return lines[len(lines)-1] == "200"
	})
	a.end(t, true)
}
