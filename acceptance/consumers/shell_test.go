//go:build acceptance

package consumers

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleShell runs the script for cron: each call reads Vault once, and no program's arguments show a token.
func TestExampleShell(t *testing.T) {
	t.Parallel()
	needs(t, "bash --version", "curl --version", "jq --version")
	m, p, cred := harness.Setup(t)
	p.SetLifetime(12 * time.Second)
	m.MustWrite(t, "config", cred.Config("rotation_period", 5))
	v, api := forApp(t, m), startAPI(t, p)

	// The arguments of curl, which all users of a machine can see, are written to a file.
	dir := t.TempDir()
	spied := filepath.Join(dir, "args")
	curl := fmt.Sprintf("#!/bin/sh\nprintf '%%s ' \"$@\" >>'%s'\nPATH=${PATH#*:} exec curl \"$@\"\n", spied)
	harness.WriteFile(t, filepath.Join(dir, "curl"), curl, 0o700)
	var shown []byte
	call := func(code int, says, env string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "../../examples/shell/autopay-curl.sh", "-d", postBody, api.web.URL)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "VAULT_ADDR="+v.web.URL,
			"AUTOPAY_PATH="+m.At+"/token", "NO_PROXY=127.0.0.1", env)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), says) {
			t.Errorf("the script ends with %d, want %d, and says %q: %s", got, code, says, out)
		}
		shown = append(shown, out...)
	}
	key := m.TokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.At))
	file := harness.WriteFile(t, filepath.Join(t.TempDir(), "vault-token"), key+"\n", 0o600)

	calls := 0
	harness.Eventually(t, harness.StartWithin, "no two rotations", func() bool {
		calls++
		call(0, "", "VAULT_TOKEN_FILE="+file)
		v.mu.Lock()
		defer v.mu.Unlock()
		return len(slices.Compact(slices.Clone(v.tokens))) >= 3
	})
	if seen := v.seen(); seen.reads != calls {
		t.Errorf("%d reads of Vault for %d calls", seen.reads, calls)
	}
	if stats := p.Stats(); stats.ResourceRequests != calls || stats.ResourceRefused != 0 || stats.DeadTokensSeen != 0 {
		t.Errorf("%d calls: %d reached the API, which refused %d, %d with a dead token",
			calls, stats.ResourceRequests, stats.ResourceRefused, stats.DeadTokensSeen)
	}
	t.Logf("FIGURE: %s: %d calls over 2 rotations, 0 failed, 0 dead tokens seen", t.Name(), calls)

	var failed atomic.Int32
	v.setMeddle(func(w http.ResponseWriter, _ *http.Request) bool {
		if failed.Add(1) > 2 {
			return false
		}
		http.Error(w, `{"errors":["Vault is sealed"]}`, http.StatusServiceUnavailable)
		return true
	})
	call(0, "", "VAULT_TOKEN="+key)
	if failed.Load() != 3 {
		t.Errorf("%d reads of a Vault that answers 503 twice, want 3", failed.Load())
	}
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		api.answer.Store(&answer)
		call(22, fmt.Sprint(status), "VAULT_TOKEN="+key)
	}
	api.answer.Store(nil)
	denied := m.TokenFor(t, `path "other" { capabilities = ["read"] }`)
	call(5, "permission denied", "VAULT_TOKEN="+denied)

	shown = append(shown, harness.ReadFile(t, spied)...)
	for _, quote := range harness.FindSecrets(shown) {
		t.Errorf("the script shows %s", quote)
	}
	for _, secret := range []string{key, denied} {
		if bytes.Contains(shown, []byte(secret)) {
			t.Error("the script shows its token for Vault")
		}
	}
}
