//go:build acceptance

package consumers

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// exampleVault is a server with the engine where the examples expect it.
func exampleVault(t *testing.T) harness.Mount {
	t.Helper()
	return harness.EnableAt(t, harness.StartVault(t), "autopay")
}

// appRole runs the example's setup script and returns the directory with what
// Agent needs to log in.
func appRole(t *testing.T, s *harness.Server, role, policy string, operator ...string) string {
	t.Helper()
	bin, dir := t.TempDir(), filepath.Join(t.TempDir(), "etc")
	if err := os.Symlink(harness.VaultBin, filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	args := append([]string{role, "../../examples/policies/" + policy, dir}, operator...)
	cmd := exec.CommandContext(t.Context(), "../../examples/agent/approle.sh", args...)
	cmd.Env = s.Env(s.RootToken, "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	s.Saw("output of approle.sh", out)
	if err != nil {
		t.Fatalf("approle.sh %v: %v\n%s", args, err, out)
	}
	return dir
}

// login logs in with what appRole wrote, and returns the Vault token.
func login(t *testing.T, s *harness.Server, dir string) string {
	t.Helper()
	ids := map[string]any{}
	for field, file := range map[string]string{"role_id": "role-id", "secret_id": "secret-id"} {
		text := harness.ReadFile(t, filepath.Join(dir, file))
		ids[field] = strings.TrimSpace(string(text))
	}
	secret, err := s.Client("").Logical().WriteWithContext(t.Context(), "auth/approle/login", ids)
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	return secret.Auth.ClientToken
}

// holder watches a place where Agent puts the token.
type holder struct {
	p      *harness.Autopay
	client string
	now    func() string // the token there; "" before the first
	stop   func()        // ends the watch

	mu     sync.Mutex // guards what follows
	tokens []string   // each change, in order
	seen   []time.Time
	before int // tokens that Autopay issued before the first one seen
	dead   int // looks at a token that Autopay refused
	late   int // tokens that came when their predecessor was dead
	gone   int // looks that found none, after the first
}

func watch(t *testing.T, p *harness.Autopay, client string, now func() string) *holder {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	h := &holder{p: p, client: client, now: now, stop: func() { cancel(); <-done }}
	t.Cleanup(h.stop)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			h.look(time.Now())
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return h
}

func (h *holder) look(at time.Time) {
	token := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	last := len(h.tokens) - 1
	switch {
	case token == "" && last < 0:
		return
	case token == "":
		h.gone++
		return
	case last < 0:
		h.before = h.p.Issued(h.client) - 1
	case token != h.tokens[last] && !h.p.Valid(h.tokens[last]):
		h.late++
	}
	if last < 0 || token != h.tokens[last] {
		h.tokens, h.seen = append(h.tokens, token), append(h.seen, at)
	}
	if !h.p.Valid(token) {
		h.dead++
	}
}

// issued is the number of tokens that Autopay has issued to the one held.
func (h *holder) issued() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.before + len(h.tokens)
}

// check fails the test for what no application may ever see. It returns the longest
// time for which a token was out of date: from Autopay's answer with the next token
// until that was in place. The watch must have ended with the newest token.
func (h *holder) check(t *testing.T, answered []time.Time) (stale time.Duration) {
	t.Helper()
	if h.dead > 0 || h.late > 0 || h.gone > 0 {
		t.Errorf("%d looks at a dead token, %d tokens after their predecessor's death, %d looks at none", h.dead, h.late, h.gone)
	}
	if distinct := slices.Compact(slices.Sorted(slices.Values(h.tokens))); len(distinct) != len(h.tokens) {
		t.Errorf("%d changes for %d tokens", len(h.tokens), len(distinct))
	}
	for i, at := range h.seen[1:] {
		stale = max(stale, at.Sub(answered[h.before+1+i]))
	}
	if stale > 15*time.Second {
		t.Errorf("a token was out of date for %v", stale)
	}
	return stale
}

// issues returns when each token of a client was requested, and when Autopay
// answered.
func issues(p *harness.Autopay, client string) (asked, answered []time.Time) {
	for _, e := range p.Log() {
		if e.ClientID == client && e.Path == autopaysim.TokenPath && e.Status == http.StatusOK {
			asked, answered = append(asked, e.Time), append(answered, e.Time.Add(e.Duration))
		}
	}
	return asked, answered
}

// checkReads checks that each read of an agent comes ttl + 1 s after the one
// before. So it reads each token once, or twice if Autopay took seconds over the
// next one. It returns the number of reads of each token, and how late the next
// token was.
func checkReads(t *testing.T, reads []harness.AuditedRead, period time.Duration, asked, answered []time.Time) (counts []int, lates []time.Duration) {
	t.Helper()
	for i, read := range reads {
		if i > 0 {
			last := reads[i-1]
			if gap, want := read.At.Sub(last.At), last.TTL+time.Second; gap < want || gap > want+5*time.Second {
				t.Errorf("a read %v after one with ttl %v, want %v", gap, last.TTL, want)
			}
			if read.Token == last.Token {
				counts[len(counts)-1]++
				continue
			}
		}
		counts = append(counts, 1)
	}

	prompt, slow := 0, 0
	for i := range min(len(counts), len(answered)) - 1 {
		// A token is due a whole number of seconds after it was requested.
		late := answered[i+1].Sub(asked[i].Truncate(time.Second).Add(period)).Round(10 * time.Millisecond)
		lates = append(lates, late)
		switch {
		case late < 700*time.Millisecond: // the engine has stored it when Agent reads, 1 s after it was due
			prompt++
			if counts[i] != 1 {
				t.Errorf("%d reads of token %d, want 1", counts[i], i)
			}
		case late > 2500*time.Millisecond && late < 6500*time.Millisecond:
			slow++
			if counts[i] != 2 {
				t.Errorf("%d reads of token %d, whose successor was %v late, want 2", counts[i], i, late)
			}
		}
	}
	if prompt < 2 || slow != 1 {
		t.Errorf("%d tokens replaced in time and %d slowly, want 2 or more and 1", prompt, slow)
	}
	return counts, lates
}

// agentExamples are the examples' files, each with the path in it that the test
// replaces.
var agentExamples = map[string]string{
	"agent-template.hcl": "/run/shop/autopay-token",
	"agent-exec.hcl":     "/usr/local/bin/shop",
}

// startExamples runs an agent with each of the examples' files. Each logs in with
// an AppRole named after its file. It returns the file that holds the token, and
// the child process with the token in its environment.
func startExamples(t *testing.T, m harness.Mount, p *harness.Autopay, cred harness.Credential) (file, child *holder) {
	t.Helper()
	dir := t.TempDir()
	rendered, starts, app := filepath.Join(dir, "autopay-token"), filepath.Join(dir, "starts"), filepath.Join(dir, "shop")
	script := "#!/bin/sh\nprintf '%s\\n' \"$AUTOPAY_TOKEN\" >>'" + starts + "'\nexec sleep 600\n"
	harness.WriteFile(t, app, []byte(script), 0o700)
	for name, own := range map[string]string{"agent-template.hcl": rendered, "agent-exec.hcl": app} {
		etc := appRole(t, m.Server, name, "app.hcl")
		startVaultProgram(t, "agent", example(t, "agent/"+name, agentExamples[name], own,
			"https://vault.example.com:8200", m.Addr, "/etc/autopay", etc))
	}
	file = watch(t, p, cred.ID, func() string {
		text, _ := os.ReadFile(rendered) // not there yet
		return string(text)
	})
	child = watch(t, p, cred.ID, func() string {
		text, _ := os.ReadFile(starts)
		lines := strings.Split(string(text), "\n") // the last one is empty, or not all there
		return lines[max(0, len(lines)-2)]
	})
	return file, child
}

// reach waits until both hold the nth token that Autopay issued, or a later one.
func reach(t *testing.T, n int, file, child *holder) {
	t.Helper()
	harness.Eventually(t, 90*time.Second, "the next token does not reach the file and the child", func() bool {
		return file.issued() >= n && child.issued() >= n
	})
}

// TestExampleAgent runs Vault Agent with both of the examples' files for a few
// rotations, one of them with a slow Autopay and one during an outage. The audit
// log tells what the agents did.
func TestExampleAgent(t *testing.T) {
	t.Parallel()
	const period = 8 * time.Second
	m, p := exampleVault(t), harness.StartAutopayBanning(t, 30)
	p.SetLifetime(time.Minute)
	cred := p.NewCredential()
	// With verify=false, the agents' first read obtains the first token.
	m.MustWrite(t, "config", cred.Unverified("rotation_period", int(period.Seconds())))
	file, child := startExamples(t, m, p, cred)
	reads := func(example string) []harness.AuditedRead {
		return slices.DeleteFunc(m.AuditedReads(t, "autopay/token"), func(r harness.AuditedRead) bool { return r.Role != example || r.Token == "" })
	}

	reach(t, 3, file, child)
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second, Times: 1})
	reach(t, 4, file, child)

	// The outage begins before a rotation and lasts until both agents have read twice.
	p.SetFault(harness.Down)
	failing, held := p.Requests(cred.ID), p.Issued(cred.ID)
	harness.Eventually(t, 30*time.Second, "no refresh fails", func() bool { return p.Requests(cred.ID) > failing })
	already := map[string]int{}
	for example := range agentExamples {
		already[example] = len(reads(example))
	}
	for example := range agentExamples {
		harness.Eventually(t, 30*time.Second, "no reads in the outage", func() bool { return len(reads(example)) >= already[example]+2 })
	}
	if file.issued() != held || child.issued() != held {
		t.Errorf("after the outage the file has token %d, the child %d, want %d", file.issued(), child.issued(), held)
	}
	p.SetFault(autopaysim.Fault{})
	reach(t, held+1, file, child)
	harness.Eventually(t, time.Minute, "the file and the child never have the newest token", func() bool {
		newest := p.Issued(cred.ID)
		return file.issued() == newest && child.issued() == newest
	})
	file.stop()
	child.stop()

	asked, answered := issues(p, cred.ID)
	for example, h := range map[string]*holder{"agent-template.hcl": file, "agent-exec.hcl": child} {
		stale := h.check(t, answered)
		counts, lates := checkReads(t, reads(example), period, asked[h.before:], answered[h.before:])
		t.Logf("FIGURE: Vault Agent with %s, a token replaced every %v, once by a slow Autopay, once in an outage: reads of each token %v, "+
			"whose successor was late by %v; %d tokens, each put in place once; out of date for at most %v; dead tokens in place: %d",
			example, period, counts, lates, len(h.tokens), stale.Round(100*time.Millisecond), h.dead)
	}
}

// TestExampleAgentLongOutage has an outage that lasts longer than the token. The
// dead token stays in place until Autopay is back, and is then replaced
// automatically.
func TestExampleAgentLongOutage(t *testing.T) {
	t.Parallel()
	m, p := exampleVault(t), harness.StartAutopayBanning(t, 30)
	p.SetLifetime(12 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Unverified("rotation_period", 6))
	file, child := startExamples(t, m, p, cred)
	reach(t, 1, file, child)

	p.SetFault(harness.Down)
	harness.Eventually(t, 30*time.Second, "the token goes on", func() bool { return m.Read(t, "status").Data["state"] == "failing" })
	held := p.Issued(cred.ID)
	failing := time.Now()
	harness.Eventually(t, 30*time.Second, "", func() bool { return time.Since(failing) > 10*time.Second })
	if file.issued() != held || child.issued() != held {
		t.Errorf("in the outage the file has token %d, the child %d, want %d", file.issued(), child.issued(), held)
	}

	p.SetFault(autopaysim.Fault{})
	p.SetLifetime(time.Hour)
	m.MustWrite(t, "config", harness.Fields("rotation_period", "30m"))
	reach(t, held+1, file, child)
	file.stop()
	child.stop()
	for _, h := range []*holder{file, child} {
		if newest := h.tokens[len(h.tokens)-1]; h.gone > 0 || !p.Valid(newest) || h.issued() != p.Issued(cred.ID) {
			t.Errorf("after the outage: %d of %d tokens, the newest good: %v; %d looks at none", h.issued(), p.Issued(cred.ID), p.Valid(newest), h.gone)
		}
	}
}
