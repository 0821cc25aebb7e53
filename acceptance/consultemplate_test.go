//go:build acceptance

package acceptance

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// consulTemplate is consul-template's own code that reads a secret and says
// how long it will wait, built from acceptance/consultemplate.
type consulTemplate string

func buildConsulTemplate(t *testing.T, modfile string) consulTemplate {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "consultemplate")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-C", "consultemplate", "-modfile="+modfile, "-o", bin, ".")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return consulTemplate(bin)
}

// wait has it read a path with a token; what it says when it fails is err.
func (c consulTemplate) wait(t *testing.T, m mount, token, path string) (wait time.Duration, err string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), string(c), m.at+"/"+path)
	cmd.Env = []string{"HOME=" + m.dir, "VAULT_ADDR=" + m.addr, "VAULT_TOKEN=" + token, "VAULT_MAX_RETRIES=0"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	failed := cmd.Run()
	m.witness.see("output of consul-template for /"+m.at+"/", append(stdout.Bytes(), stderr.Bytes()...), false)
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

// TestConsulTemplateIsVaults shows that go.mod pins the version of the Vault
// under test.
func TestConsulTemplateIsVaults(t *testing.T) {
	t.Parallel()
	var versions []string
	for _, file := range []string{"vault/go.mod", "consultemplate/go.mod"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, string(consulTemplateVersion.Find(text)))
	}
	if versions[0] != versions[1] || versions[0] == "" {
		t.Errorf("Vault is made of %q, the test's program of %q", versions[0], versions[1])
	}
}

// TestConsulTemplateWait asks consul-template itself, in the version that this
// Vault's Agent is made of and in the newest, when it would come back, at each
// stage of a token's life.
func TestConsulTemplateWait(t *testing.T) {
	t.Parallel()
	versions := map[string]consulTemplate{
		"0.41": buildConsulTemplate(t, "go.mod"),
		"0.42": buildConsulTemplate(t, "newest.mod"),
	}
	m := enable(t, sharedVault(t))
	app := m.tokenFor(t, fmt.Sprintf(`path "%s/token/*" { capabilities = ["read"] }`, m.at))
	// failing waits for a failed refresh, then gives a token a period that leaves
	// its ttl to the next attempt.
	failing := func(t *testing.T, name string, p *provider, fault autopaysim.Fault) {
		t.Helper()
		p.SetFault(fault)
		eventually(t, 15*time.Second, "no refresh fails", func() bool { return m.read(t, "status/"+name).data["state"] == "degraded" })
		m.mustWrite(t, "config/"+name, pairs("rotation_period", "1h"))
	}

	for name, stage := range map[string]struct {
		period      int
		lifetime    time.Duration
		reach       func(*testing.T, *provider, credential)
		least, most time.Duration // 0: it must fail
	}{
		"fresh-of-a-day": {0, 24 * time.Hour, nil, 64741 * time.Second, 64801 * time.Second},
		"fresh-of-90s":   {30, 90 * time.Second, nil, 16 * time.Second, 31 * time.Second},
		"due": {7, time.Minute, func(t *testing.T, p *provider, c credential) {
			p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
			eventually(t, 15*time.Second, "no refresh begins", func() bool { return p.Requests(c.id) == 2 })
		}, 6 * time.Second, 6 * time.Second},
		"outage": {5, time.Hour, func(t *testing.T, p *provider, _ credential) {
			failing(t, "outage", p, down)
		}, 6 * time.Second, 61 * time.Second},
		"refused": {5, time.Hour, func(t *testing.T, p *provider, _ credential) {
			failing(t, "refused", p, autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: http.StatusUnauthorized})
		}, 61 * time.Second, 61 * time.Second},
		"healed": {5, 24 * time.Hour, func(t *testing.T, p *provider, c credential) {
			failing(t, "healed", p, down)
			p.SetFault(autopaysim.Fault{})
			eventually(t, 15*time.Second, "no new token", func() bool { return m.read(t, "status/healed").data["state"] == "ok" })
		}, 3541 * time.Second, 3601 * time.Second},
		"no-live-token": {5, 10 * time.Second, func(t *testing.T, p *provider, _ credential) {
			p.SetFault(down)
			eventually(t, 20*time.Second, "the token goes on", func() bool { return m.read(t, "status/no-live-token").data["state"] == "failing" })
		}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProvider(t)
			p.SetLifetime(stage.lifetime)
			c := p.newCredential()
			m.mustWrite(t, "config/"+name, c.config("rotation_period", stage.period))
			if stage.reach != nil {
				stage.reach(t, p, c)
			}
			for version, consulTemplate := range versions {
				if stage.most == 0 {
					if got, failed := consulTemplate.wait(t, m, app, "token/"+name); !strings.Contains(failed, "503") {
						t.Errorf("consul-template %s waits %v (%s), want Vault's 503", version, got, failed)
					}
					continue
				}
				before := m.token(t, name).TTL
				got, failed := consulTemplate.wait(t, m, app, "token/"+name)
				after := m.token(t, name).TTL
				if failed != "" || got < stage.least || got > stage.most {
					t.Errorf("consul-template %s waits %v, want %v to %v; %s", version, got, stage.least, stage.most, failed)
				}
				if ttl := int64(got.Seconds()) - 1; ttl < min(before, after) || ttl > max(before, after) {
					t.Errorf("consul-template %s waits %v at a ttl of %d to %d, want that and 1 s", version, got, before, after)
				}
				t.Logf("FIGURE: consul-template %s, token %s: ttl %d, it reads again after %v", version, name, before, got)
			}
		})
	}
}
