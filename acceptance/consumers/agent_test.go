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

// vaultOnPath returns a PATH on which the Vault under test comes first, as NAME=value.
func vaultOnPath(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(harness.VaultBin, filepath.Join(dir, "vault")); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// appRole runs the example's setup script and returns the directory with what
// Agent needs to log in.
func appRole(t *testing.T, s *harness.Server, role, policy string, operator ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etc")
	args := append([]string{role, "../../examples/policies/" + policy, dir}, operator...)
	cmd := exec.CommandContext(t.Context(), "../../examples/agent/approle.sh", args...)
	cmd.Env = s.Env(s.RootToken, vaultOnPath(t))
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
	bad    int // looks that found a token that Autopay refused, or none after the first
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
	if last < 0 {
		if token == "" {
			return
		}
		h.before = h.p.Issued(h.client) - 1
	}
	if !h.p.Valid(token) {
		h.bad++
	}
	if last < 0 || token != h.tokens[last] {
		h.tokens, h.seen = append(h.tokens, token), append(h.seen, at)
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
func (h *holder) check(t *testing.T) (stale time.Duration) {
	t.Helper()
	if h.bad > 0 {
		t.Errorf("%d looks found a dead token, or none", h.bad)
	}
	if distinct := slices.Compact(slices.Sorted(slices.Values(h.tokens))); len(distinct) != len(h.tokens) {
		t.Errorf("%d changes for %d tokens", len(h.tokens), len(distinct))
	}
	answered := issues(h.p, h.client)
	for i, at := range h.seen[1:] {
		stale = max(stale, at.Sub(answered[h.before+1+i]))
	}
	if stale > 15*time.Second {
		t.Errorf("a token was out of date for %v", stale)
	}
	return stale
}

// issues returns when Autopay answered with each token of a client.
func issues(p *harness.Autopay, client string) (answered []time.Time) {
	for _, e := range p.Log() {
		if e.ClientID == client && e.Path == autopaysim.TokenPath && e.Status == http.StatusOK {
			answered = append(answered, e.Time.Add(e.Duration))
		}
	}
	return answered
}

// TestExampleAgent runs Vault Agent with both of the examples' files for a few rotations, one of them with a slow
// Autopay, one during an outage, and one during an outage that lasts longer than the token. One Agent keeps the token
// in a file, the other in the environment of a child process. The audit log tells what they did.
func TestExampleAgent(t *testing.T) {
	t.Parallel()
	const period = 10 * time.Second // so an Agent that reads during a slow refresh misses no token
	m, p := exampleVault(t), harness.StartAutopayBanning(t, 30)
	p.SetLifetime(time.Minute)
	cred := p.NewCredential()
	// With verify=false, the agents' first read obtains the first token.
	m.MustWrite(t, "config", cred.Unverified("rotation_period", int(period.Seconds())))

	dir := t.TempDir()
	rendered, starts := filepath.Join(dir, "autopay-token"), filepath.Join(dir, "starts")
	app := harness.WriteFile(t, filepath.Join(dir, "shop"),
		"#!/bin/sh\nprintf '%s\\n' \"$AUTOPAY_TOKEN\" >>'"+starts+"'\nexec sleep 600\n", 0o700)
	start := func(name, old, own string) { // the role of each is its name
		// 12 retries, the default, take seconds. After them, an Agent may end, or print the token.
		startVaultProgram(t, "agent", example(t, "agent/"+name, old, own, "https://vault.example.com:8200", m.Addr,
			"method \"approle\" {", "method \"approle\" {\n min_backoff = \"50ms\"\n max_backoff = \"200ms\"",
			"/etc/autopay", appRole(t, m.Server, name, "app.hcl")), "VAULT_MAX_RETRIES=0")
	}
	start("agent-template.hcl", "/run/shop/autopay-token", rendered)
	start("agent-exec.hcl", "/usr/local/bin/shop", app)
	holders := map[string]*holder{
		"agent-template.hcl": watch(t, p, cred.ID, func() string {
			text, _ := os.ReadFile(rendered) // not there yet
			return string(text)
		}),
		"agent-exec.hcl": watch(t, p, cred.ID, func() string {
			text, _ := os.ReadFile(starts)
			lines := strings.Split(string(text), "\n") // the last one is empty, or not all there
			return lines[max(0, len(lines)-2)]
		}),
	}
	reads := func(example string) []harness.AuditedRead {
		return slices.DeleteFunc(m.AuditedReads(t, "autopay/token"), func(r harness.AuditedRead) bool {
			return r.Role != example || r.Token == ""
		})
	}
	all := func(wrong string, cond func(example string, h *holder) bool) {
		t.Helper()
		for example, h := range holders {
			harness.Eventually(t, 90*time.Second, example+": "+wrong, func() bool { return cond(example, h) })
		}
	}
	reach := func(n int) {
		t.Helper()
		all("the next token does not arrive", func(_ string, h *holder) bool { return h.issued() >= n })
	}

	reach(3)
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second, Times: 1})
	reach(4)

	// The outage begins before a rotation and lasts until both agents have read twice.
	p.SetFault(harness.Down)
	failing, held, already := p.Requests(cred.ID), p.Issued(cred.ID), map[string]int{}
	harness.Eventually(t, 30*time.Second, "no refresh fails", func() bool { return p.Requests(cred.ID) > failing })
	for example := range holders {
		already[example] = len(reads(example))
	}
	all("no reads in the outage", func(example string, _ *holder) bool {
		return len(reads(example)) >= already[example]+2
	})
	p.SetFault(autopaysim.Fault{})
	reach(held + 1)
	all("the newest token does not arrive", func(_ string, h *holder) bool { return h.issued() == p.Issued(cred.ID) })
	for example, h := range holders {
		h.stop()
		stale, audited := h.check(t), reads(example)
		for i, read := range audited[1:] {
			last := audited[i]
			if gap, want := read.At.Sub(last.At), last.TTL+time.Second; gap < want || gap > want+5*time.Second {
				t.Errorf("%s: a read %v after one with ttl %v, want %v", example, gap, last.TTL, want)
			}
		}
		t.Logf("FIGURE: Vault Agent with %s, a token replaced every %v, once by a slow Autopay, once in an outage: "+
			"%d reads; %d tokens, each put in place once; out of date for at most %v; dead tokens in place: %d",
			example, period, len(audited), len(h.tokens), stale.Round(100*time.Millisecond), h.bad)
	}

	// The dead token stays in place until Autopay is back, and is then replaced automatically.
	p.SetLifetime(12 * time.Second)
	held = p.Issued(cred.ID)
	harness.Eventually(t, 30*time.Second, "no token of 12 s", func() bool { return p.Issued(cred.ID) > held })
	p.SetFault(harness.Down)
	harness.Eventually(t, 30*time.Second, "the token does not expire", func() bool {
		return m.Read(t, "status").Data["state"] == "failing"
	})
	time.Sleep(10 * time.Second) // agents fail to read meanwhile
	all("no token in place", func(_ string, h *holder) bool { return h.now() != "" && !p.Valid(h.now()) })
	p.SetFault(autopaysim.Fault{})
	p.SetLifetime(time.Hour)
	m.MustWrite(t, "config", harness.Fields("rotation_period", "30m"))
	all("no live token after the outage", func(_ string, h *holder) bool { return p.Valid(h.now()) })
}
