//go:build acceptance

package consumers

import (
	"bytes"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// consulTemplateWait reads a path with consul-template's own code, in the program of the module consultemplate/, and
// returns how long that would wait until it reads again, or what it says on failure.
func consulTemplateWait(t *testing.T, m harness.Mount, token, path string) (wait time.Duration, failure string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), harness.Tool(t, "consul-template-wait"), m.At+"/"+path)
	cmd.Env = m.Env(token, "VAULT_MAX_RETRIES=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	m.Saw("output of consul-template for /"+m.At+"/", append(stdout.Bytes(), stderr.Bytes()...))
	if err != nil {
		return 0, err.Error() + ": " + stderr.String()
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(stdout.String()), 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second)), ""
}

// TestConsulTemplateWait asks consul-template when it would read again at each stage of a token's life.
// TestExampleAgent shows when Vault's Agent does, which has an older version of the same code.
func TestConsulTemplateWait(t *testing.T) {
	t.Parallel()
	m := harness.Enable(t, harness.SharedVault(t))
	app := m.TokenFor(t, fmt.Sprintf(`path "%s/token/*" { capabilities = ["read"] }`, m.At))

	refused, hangs := harness.Answers(http.StatusUnauthorized), autopaysim.Fault{Kind: autopaysim.FaultHang}
	none := autopaysim.Fault{}
	for name, stage := range map[string]struct {
		period      int
		lifetime    time.Duration
		fault       autopaysim.Fault // after the first token
		requests    int              // the test waits for so many, and for this state
		state       string
		recovers    bool
		least, most time.Duration // none: it must fail
	}{
		"fresh-of-a-day":  {0, 24 * time.Hour, none, 1, "ok", false, 64741 * time.Second, 64801 * time.Second},
		"fresh-of-90-s":   {30, 90 * time.Second, none, 1, "ok", false, 16 * time.Second, 31 * time.Second},
		"due":             {7, time.Minute, hangs, 2, "ok", false, 6 * time.Second, 6 * time.Second},
		"Autopay-is-down": {5, 24 * time.Hour, harness.Down, 2, "degraded", false, 6 * time.Second, 61 * time.Second},
		"it-refuses":      {5, 24 * time.Hour, refused, 2, "degraded", false, 61 * time.Second, 61 * time.Second},
		"it-is-up-again":  {5, 24 * time.Hour, harness.Down, 2, "degraded", true, 3541 * time.Second, 3601 * time.Second},
		"no-live-token":   {5, 10 * time.Second, harness.Down, 2, "failing", false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := harness.StartAutopay(t)
			p.SetLifetime(stage.lifetime)
			c := p.NewCredential()
			m.MustWrite(t, "config/"+name, c.Config("rotation_period", stage.period))
			reach := func(state string, requests int) {
				t.Helper()
				harness.Eventually(t, 30*time.Second, "the credential is never "+state, func() bool {
					return p.Requests(c.ID) >= requests && m.Read(t, "status/"+name).Data["state"] == state
				})
			}
			p.SetFault(stage.fault)
			reach(stage.state, stage.requests)
			if stage.state == "degraded" { // with a longer period, ttl is the time to the next attempt
				m.MustWrite(t, "config/"+name, harness.Fields("rotation_period", "1h"))
			}
			if stage.recovers {
				p.SetFault(none)
				reach("ok", stage.requests+1)
			}
			if stage.most == 0 {
				if got, failure := consulTemplateWait(t, m, app, "token/"+name); !strings.Contains(failure, "503") {
					t.Errorf("consul-template waits %v (%s), want Vault's 503", got, failure)
				}
				return
			}
			before := m.Token(t, name).TTL
			got, failure := consulTemplateWait(t, m, app, "token/"+name)
			after := m.Token(t, name).TTL
			if failure != "" || got < stage.least || got > stage.most {
				t.Errorf("consul-template waits %v, want %v to %v; %s", got, stage.least, stage.most, failure)
			}
			if ttl := int64(got.Seconds()) - 1; ttl < min(before, after) || ttl > max(before, after) {
				t.Errorf("consul-template waits %v at a ttl of %d to %d, want that and 1 s", got, before, after)
			}
			t.Logf("FIGURE: consul-template, %s: ttl %d, it reads again after %v", name, before, got)
		})
	}
}
