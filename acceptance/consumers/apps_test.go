//go:build acceptance

package consumers

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleApps runs the client of each language against a real Vault and the simulator's API.
func TestExampleApps(t *testing.T) {
	t.Parallel()
	python := pythonWithHvac(t)
	tests := map[string]exampleApp{
		"go": {
			run: []string{harness.Tool(t, "example-go")},
		},
		"java": {
			needs: []string{"javac -version", "java -version"},
			run:   []string{"java", "-cp", "../../bin/test/example-java", "Demo"},
		},
		"node": {
			needs: []string{"node --version"},
			run:   []string{"node", "../../examples/node/demo.mjs"},
		},
		"python": {
			needs: []string{python + " -c 'import hvac, requests'"},
			run:   []string{python, "../../examples/python/demo.py"},
		},
	}
	for name, app := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			needs(t, app.needs...)
			m := harness.Enable(t, harness.SharedVault(t))
			life := startAppLife(t, app, m) // it continues during the next three
			app.losesItsToken(t, m, "oslo", 24*time.Hour, 0)
			app.losesItsToken(t, m, "moss", 20*time.Second, 1)
			app.mayNotRead(t, m)
			life.rotations(t)
			life.revoked(t)
			life.vaultAway(t)
			life.forbidden(t)
			life.redirected(t)
			life.asksForAnother(t)
			life.end(t)
		})
	}
}

// TestExampleGoShort runs the short Go client through rotations, which is all that it is for.
func TestExampleGoShort(t *testing.T) {
	t.Parallel()
	app := exampleApp{run: []string{harness.Tool(t, "example-go"), "-short"}}
	life := startAppLife(t, app, harness.Enable(t, harness.SharedVault(t)))
	life.rotations(t)
	life.end(t)
}

// pythonWithHvac returns the interpreter that has hvac: Debian's, if the first on the PATH is another that lacks it.
func pythonWithHvac(t *testing.T) string {
	t.Helper()
	if exec.CommandContext(t.Context(), "python3", "-c", "import hvac, requests").Run() == nil {
		return "python3"
	}
	return "/usr/bin/python3"
}

// appLife is the life of an application that has the right policy. Each of its calls must be answered 200.
type appLife struct {
	*process
	m     harness.Mount
	p     *harness.Autopay
	api   *exampleAPI
	cred  harness.Credential
	vault *appVault
	key   func() string // a new token for Vault
	stall time.Duration // of 10 calls while Vault hung
	good  int           // calls that were answered 200
	next  int           // the first line that was not looked at
}

func startAppLife(t *testing.T, app exampleApp, m harness.Mount) *appLife {
	t.Helper()
	p := harness.StartAutopayBanning(t, 40)
	p.SetLifetime(12 * time.Second)
	l := &appLife{m: m, p: p, api: startAPI(t, p), cred: p.NewCredential(), vault: forApp(t, m)}
	l.key = func() string {
		return m.TokenFor(t, fmt.Sprintf(`
path "%[1]s/token"  { capabilities = ["read"] }
path "%[1]s/rotate" { capabilities = ["update"] }
`, m.At))
	}
	m.MustWrite(t, "config", l.cred.Config("rotation_period", 6))
	l.process = app.start(t, m, "", l.vault, l.api, l.key())
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
	for i := range reads[1:] {
		// The next read is after ttl + 1 s, and ttl is never below 5.
		if gap := reads[i+1].Sub(reads[i]); gap < 5900*time.Millisecond {
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
	l.allGood(t, lines)
	if s := l.p.Stats(); s.ResourceRefused != 0 || s.DeadTokensSeen != 0 {
		t.Errorf("the API refused %d requests, %d tokens had expired", s.ResourceRefused, s.DeadTokensSeen)
	}
}

// allGood fails the test unless each line that it has not seen before is 200.
func (l *appLife) allGood(t *testing.T, lines []string) {
	t.Helper()
	allAre(t, lines[l.next:], "200")
	l.good += len(lines) - l.next
	l.next = len(lines)
}

// instead makes the API answer some calls in another way, and returns the lines of those calls. The application must
// not read Vault or rotate because of them.
func (l *appLife) instead(t *testing.T, answer http.HandlerFunc) []string {
	t.Helper()
	l.allGood(t, l.pause(t))
	before := l.vault.seen()
	l.api.answer.Store(&answer)
	l.resume()
	l.calls(t, 4)
	lines := l.pause(t)
	if after := l.vault.seen(); after.reads != before.reads || after.rotates != before.rotates {
		t.Errorf("%d reads, %d rotations, want none", after.reads-before.reads, after.rotates-before.rotates)
	}
	l.api.answer.Store(nil)
	l.resume()
	odd := lines[l.next:]
	l.next = len(lines)
	return odd
}

// forbidden makes the API answer 403. No other token would help. It comes long after the last 401, so that nothing but
// the status keeps the application from a read.
func (l *appLife) forbidden(t *testing.T) {
	t.Helper()
	allAre(t, l.instead(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }), "403")
}

// redirected makes the API redirect to another host, which must not get the token.
func (l *appLife) redirected(t *testing.T) {
	t.Helper()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the token went to another host")
		}
	}))
	defer elsewhere.Close()
	for _, line := range l.instead(t, http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect).ServeHTTP) {
		if line != "200" && line != "307" {
			t.Errorf("a redirect to another host: %s", line)
		}
	}
}

// revoked revokes the token when Vault already has the next one. All workers together read once, and each repeats its
// call once.
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
	if refused < 1 || refused > 2*workers {
		t.Errorf("the API answered 401 %d times, want 1 to %d", refused, 2*workers)
	}
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
	l.vault.setMeddle(func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case <-release:
		case <-r.Context().Done():
		}
		if failed.Add(1)%2 == 0 {
			panic(http.ErrAbortHandler) // which closes the connection
		}
		http.Error(w, `{"errors":["Vault is sealed"]}`, http.StatusServiceUnavailable)
		return true
	})
	harness.Eventually(t, time.Minute, "no re-read", func() bool { return l.vault.seen().reads > before.reads })
	hangs := time.Now()
	l.calls(t, 10)
	stall := time.Since(hangs).Round(100 * time.Millisecond)
	if stall > 8*time.Second { // 2 s, and a busy machine
		t.Errorf("calls waited %v for a Vault that hangs", stall)
	}
	if n := l.vault.seen().reads - before.reads; n != 1 {
		t.Errorf("%d reads at once", n)
	}
	close(release)
	harness.Eventually(t, time.Minute, "no further read after a failed one", func() bool { return failed.Load() >= 3 })
	l.calls(t, 2)
	l.m.MustWrite(t, "config", harness.Fields("rotation_period", 50)) // the token that is read next stays
	l.vault.setMeddle(nil)

	l.vault.answered(t, before.answered+1)
	l.allGood(t, l.lines(t))
	l.stall = stall
}

// asksForAnother revokes the token that Vault still has. The application asks Vault to rotate it. The token is too
// young for that, but the operator replaces it at the same time.
func (l *appLife) asksForAnother(t *testing.T) {
	t.Helper()
	// Clients do not rotate a token in the first tenth of its rotation_period.
	harness.Eventually(t, time.Minute, "the token stays young", func() bool { return l.m.Token(t, "").TTL < 44 })
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
	// Calls that begin while the first one waits for the rotation are refused as well.
	if n := l.p.Stats().ResourceRefused - refused; n < 1 {
		t.Errorf("the API answered 401 %d times", n)
	}
}

func (l *appLife) end(t *testing.T) {
	t.Helper()
	l.allGood(t, l.process.end(t))
	// Each 401 was followed by one repeated call, and there were no other calls.
	stats := l.p.Stats()
	if accepted := stats.ResourceRequests - stats.ResourceRefused; accepted != l.good {
		t.Errorf("the API accepted %d requests for %d calls", accepted, l.good)
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
	t.Logf("FIGURE: %s: %d calls, 0 failed, %d repeated after a 401, %d dead tokens seen, %d reads in Vault's audit log; "+
		"10 calls took %v while Vault hung", t.Name(), l.good, stats.ResourceRefused, stats.DeadTokensSeen, audited, l.stall)
}

// losesItsToken revokes the token of an application whose policy does not allow it to rotate. The application tries to
// rotate once if the token is old enough, passes the 401 on and does not ask Vault again.
func (app exampleApp) losesItsToken(t *testing.T, m harness.Mount, name string, lifetime time.Duration, rotates int) {
	t.Helper()
	p := harness.StartAutopay(t)
	p.SetLifetime(lifetime)
	m.MustWrite(t, "config/"+name, p.NewCredential().Config())
	v := forApp(t, m)
	key := m.TokenFor(t, fmt.Sprintf(`path "%s/token/%s" { capabilities = ["read"] }`, m.At, name))
	a := app.start(t, m, "/"+name, v, startAPI(t, p), key)
	allAre(t, a.calls(t, 1), "200")
	if rotates > 0 {
		harness.Eventually(t, time.Minute, "the token stays young", func() bool {
			token := m.Token(t, name)
			return 10*token.TTL < 8*token.RotationPeriod
		})
	}
	good := len(a.pause(t))
	p.Revoke(v.held())
	a.resume()
	a.calls(t, 12)
	lines := a.end(t)
	allAre(t, lines[:good], "200")
	allAre(t, lines[good:], "401")
	if seen := v.seen(); seen.reads != 2 || seen.rotates != rotates {
		t.Errorf("%d reads and %d rotations, want 2 and %d", seen.reads, seen.rotates, rotates)
	}
	if s := p.Stats(); s.ResourceRequests != len(lines) {
		t.Errorf("%d requests to the API for %d calls: repeated with the same token", s.ResourceRequests, len(lines))
	}
}

// mayNotRead gives an application the wrong policy, then the right one.
func (app exampleApp) mayNotRead(t *testing.T, m harness.Mount) {
	t.Helper()
	p := harness.StartAutopay(t)
	m.MustWrite(t, "config/bergen", p.NewCredential().Config())
	v := forApp(t, m)
	key := m.TokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.At))
	a := app.start(t, m, "/bergen", v, startAPI(t, p), key)
	lines := a.calls(t, 20)
	for _, want := range []string{"permission denied", m.At + "/token/bergen"} {
		if !strings.Contains(lines[0], want) {
			t.Errorf("a call without a token says %q, without %q", lines[0], want)
		}
	}
	if seen := v.seen(); seen.reads > 2 || seen.rotates != 0 {
		t.Errorf("%d reads and %d rotations in %d calls, want 1 or 2, and none", seen.reads, seen.rotates, len(lines))
	}
	if n := p.Stats().ResourceRequests; n != 0 {
		t.Errorf("%d requests to the API without a token", n)
	}

	a.giveKey(t, m.TokenFor(t, fmt.Sprintf(`path "%s/token/bergen" { capabilities = ["read"] }`, m.At)))
	harness.Eventually(t, time.Minute, "no token with the right policy", func() bool {
		lines := a.lines(t)
		return lines[len(lines)-1] == "200"
	})
	a.end(t)
}
