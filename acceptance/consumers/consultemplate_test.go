//go:build acceptance

package consumers

import (
	"bytes"
	"fmt"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// consulTemplate is a program built from the module in consultemplate/. It reads a
// secret with consul-template's own code and prints how long that would wait.
type consulTemplate string

// wait has it read a path with a token. On failure it returns what the program says.
func (c consulTemplate) wait(t *testing.T, m harness.Mount, token, path string) (wait time.Duration, err string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), string(c), m.At+"/"+path)
	cmd.Env = m.Env(token, "VAULT_MAX_RETRIES=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	failed := cmd.Run()
	m.Saw("output of consul-template for /"+m.At+"/", append(stdout.Bytes(), stderr.Bytes()...))
	if failed != nil {
		return 0, failed.Error() + ": " + stderr.String()
	}
	seconds, bad := strconv.ParseFloat(strings.TrimSpace(stdout.String()), 64)
	if bad != nil {
		t.Fatal(bad)
	}
	return time.Duration(seconds * float64(time.Second)), ""
}

var consulTemplateVersion = regexp.MustCompile(`github.com/hashicorp/consul-template (v\S+)`)

// TestConsulTemplateIsVaults checks that go.mod pins the same version of
// consul-template as the Vault under test.
func TestConsulTemplateIsVaults(t *testing.T) {
	t.Parallel()
	var versions []string
	for _, file := range []string{"../vault/go.mod", "consultemplate/go.mod"} {
		text := harness.ReadFile(t, file)
		versions = append(versions, string(consulTemplateVersion.Find(text)))
	}
	if versions[0] != versions[1] || versions[0] == "" {
		t.Errorf("Vault is made of %q, the test's program of %q", versions[0], versions[1])
	}
}

// TestConsulTemplateWait asks consul-template, in the version of this Vault's Agent
// and in the newest one, when it would read again at each stage of a token's life.
func TestConsulTemplateWait(t *testing.T) {
	t.Parallel()
	versions := map[string]consulTemplate{
		"0.41": consulTemplate(harness.Tool(t, "consul-template-wait-vault")),
		"0.43": consulTemplate(harness.Tool(t, "consul-template-wait-newest")),
	}
	m := harness.Enable(t, harness.SharedVault(t))
	app := m.TokenFor(t, fmt.Sprintf(`path "%s/token/*" { capabilities = ["read"] }`, m.At))

	refused := harness.Answers(http.StatusUnauthorized)
	for title, stage := range map[string]struct {
		period      int
		lifetime    time.Duration
		fault       autopaysim.Fault // after the first token
		requests    int              // the test waits for so many, and for this state
		state       string
		heals       bool
		least, most time.Duration // none: it must fail
	}{
		"fresh, of a day": {0, 24 * time.Hour, autopaysim.Fault{}, 1, "ok", false, 64741 * time.Second, 64801 * time.Second},
		"fresh, of 90 s":  {30, 90 * time.Second, autopaysim.Fault{}, 1, "ok", false, 16 * time.Second, 31 * time.Second},
		"due":             {7, time.Minute, autopaysim.Fault{Kind: autopaysim.FaultHang}, 2, "ok", false, 6 * time.Second, 6 * time.Second},
		"Autopay is down": {5, 24 * time.Hour, harness.Down, 2, "degraded", false, 6 * time.Second, 61 * time.Second},
		"it refuses":      {5, 24 * time.Hour, refused, 2, "degraded", false, 61 * time.Second, 61 * time.Second},
		"it is up again":  {5, 24 * time.Hour, harness.Down, 2, "degraded", true, 3541 * time.Second, 3601 * time.Second},
		"no live token":   {5, 10 * time.Second, harness.Down, 2, "failing", false, 0, 0},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			name := strings.NewReplacer(" ", "-", ",", "").Replace(title)
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
			if stage.heals {
				p.SetFault(autopaysim.Fault{})
				reach("ok", stage.requests+1)
			}
			for version, consulTemplate := range versions {
				if stage.most == 0 {
					if got, failed := consulTemplate.wait(t, m, app, "token/"+name); !strings.Contains(failed, "503") {
						t.Errorf("consul-template %s waits %v (%s), want Vault's 503", version, got, failed)
					}
					continue
				}
				before := m.Token(t, name).TTL
				got, failed := consulTemplate.wait(t, m, app, "token/"+name)
				after := m.Token(t, name).TTL
				if failed != "" || got < stage.least || got > stage.most {
					t.Errorf("consul-template %s waits %v, want %v to %v; %s", version, got, stage.least, stage.most, failed)
				}
				if ttl := int64(got.Seconds()) - 1; ttl < min(before, after) || ttl > max(before, after) {
					t.Errorf("consul-template %s waits %v at a ttl of %d to %d, want that and 1 s", version, got, before, after)
				}
				t.Logf("FIGURE: consul-template %s, %s: ttl %d, it reads again after %v", version, title, before, got)
			}
		})
	}
}
