//go:build acceptance

package consumers

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleKubernetesAgentTemplate gives the template of the injector's
// annotation to a real Vault Agent, as the injector does.
func TestExampleKubernetesAgentTemplate(t *testing.T) {
	t.Parallel()
	m, _, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())

	const annotation = "vault.hashicorp.com/agent-inject-template-autopay-token: '"
	_, rest, found := strings.Cut(example(t, "kubernetes/agent-injector.yaml"), annotation)
	contents, _, closed := strings.Cut(rest, "'\n")
	if !found || !closed {
		t.Fatal("the example has no template of the form that this test knows")
	}

	dir := t.TempDir()
	rendered := filepath.Join(dir, "autopay-token")
	app := newAppRole(t, m.Server, dir, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.At))
	runAgent(t, m.Server, dir, fmt.Sprintf(`
vault { address = %q }
auto_auth {
  method "approle" {
    mount_path = %q
    config     = { role_id_file_path = %q, secret_id_file_path = %q }
  }
}
template {
  contents    = %q
  destination = %q
  perms       = "0400"
}
`, m.Addr, app.mount, app.roleID, app.secretID, strings.ReplaceAll(contents, "autopay/token", m.At+"/token"), rendered))

	text := harness.ReadFile(t, rendered)
	if string(text) != m.Token(t, "").AccessToken {
		t.Errorf("the agent rendered %d bytes that are not the token", len(text))
	}
}

// TestExamplePrometheusLogin runs the agent of examples/prometheus, and scrapes as
// Prometheus does with the Vault token that the agent wrote.
func TestExamplePrometheusLogin(t *testing.T) {
	t.Parallel()
	m, _, _ := harness.Setup(t)
	dir := t.TempDir()
	app := newAppRole(t, m.Server, dir, strings.ReplaceAll(example(t, "prometheus/policy.hcl"), `"autopay/metrics"`, `"`+m.At+`/metrics"`))

	sink := filepath.Join(dir, "vault-token")
	runAgent(t, m.Server, dir, strings.NewReplacer(
		"https://vault.example.com:8200", m.Addr,
		`method "approle" {`, fmt.Sprintf("method \"approle\" {\n    mount_path = %q", app.mount),
		"/etc/prometheus/vault-role-id", app.roleID,
		"/etc/prometheus/vault-secret-id", app.secretID,
		"/run/prometheus/vault-token", sink,
	).Replace(example(t, "prometheus/agent.hcl")))
	login := harness.ReadFile(t, sink)

	if status, _, text := m.Scrape(t, string(login)); status != http.StatusOK || !strings.Contains(text, "autopay_build_info") {
		t.Errorf("scrape: %d\n%s", status, text)
	}
	forbidden := map[string]int{}
	for _, path := range []string{"token", "status", "config"} {
		forbidden["GET "+path] = http.StatusForbidden
	}
	m.WantCodes(t, string(login), forbidden)
}

// appRoleLogin is what an agent logs in with.
type appRoleLogin struct {
	mount            string
	roleID, secretID string // files
}

func newAppRole(t *testing.T, s *harness.Server, dir, rules string) appRoleLogin {
	t.Helper()
	name := "approle-" + harness.Random(4)
	if err := s.Root().Sys().PutPolicyWithContext(t.Context(), name, rules); err != nil {
		t.Fatal(err)
	}
	err := s.Root().Sys().EnableAuthWithOptionsWithContext(t.Context(), name, &api.EnableAuthOptions{Type: "approle"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Root().Sys().DisableAuth(name) })
	role := "auth/" + name + "/role/app"
	mustDo(t, s, http.MethodPut, role, harness.Fields("token_policies", name))
	roleID := mustDo(t, s, http.MethodGet, role+"/role-id", nil).Data["role_id"].(string)
	secretID := mustDo(t, s, http.MethodPut, role+"/secret-id", nil).Data["secret_id"].(string)
	return appRoleLogin{
		mount:    "auth/" + name,
		roleID:   harness.WriteFile(t, filepath.Join(dir, "role-id"), roleID, 0o600),
		secretID: harness.WriteFile(t, filepath.Join(dir, "secret-id"), secretID, 0o600),
	}
}

// runAgent runs vault agent until it has logged in and rendered its template once.
func runAgent(t *testing.T, s *harness.Server, dir, config string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, harness.VaultBin, "agent", "-exit-after-auth",
		"-config="+harness.WriteFile(t, filepath.Join(dir, "agent.hcl"), config, 0o600))
	harness.DieWithTests(cmd)
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	s.Saw("output of vault agent", out)
	if err != nil {
		t.Fatalf("vault agent: %v\n%s", err, out)
	}
}

// mustDo sends a request with the root token to any path of the server.
func mustDo(t *testing.T, s *harness.Server, method, path string, body any) harness.Answer {
	t.Helper()
	a, err := s.Call(t.Context(), s.RootToken, method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	if a.Status/100 != 2 {
		t.Fatalf("%s %s: %v", method, path, a)
	}
	return a
}

// example returns one of the examples' files.
func example(t *testing.T, file string) string {
	t.Helper()
	return string(harness.ReadFile(t, "../../examples/"+file))
}
