//go:build acceptance

package acceptance

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
)

// TestExampleKubernetesAgentTemplate gives the template of the injector's
// annotation to a real Vault Agent, as the injector does.
func TestExampleKubernetesAgentTemplate(t *testing.T) {
	t.Parallel()
	m, _, cred := setup(t)
	m.mustWrite(t, "config", cred.config())

	const annotation = "vault.hashicorp.com/agent-inject-template-autopay-token: '"
	_, rest, found := strings.Cut(example(t, "kubernetes/agent-injector.yaml"), annotation)
	contents, _, closed := strings.Cut(rest, "'\n")
	if !found || !closed {
		t.Fatal("the example has no template of the form that this test knows")
	}

	dir := t.TempDir()
	rendered := filepath.Join(dir, "autopay-token")
	app := m.newAppRole(t, dir, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.at))
	m.runAgent(t, dir, fmt.Sprintf(`
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
`, m.addr, app.mount, app.roleID, app.secretID, strings.ReplaceAll(contents, "autopay/token", m.at+"/token"), rendered))

	text, err := os.ReadFile(rendered)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != m.token(t, "").AccessToken {
		t.Errorf("the agent rendered %d bytes that are not the token", len(text))
	}
}

// TestExamplePrometheusLogin runs the agent of examples/prometheus, and asks
// as Prometheus does with the Vault token that it left: Authorization: Bearer.
func TestExamplePrometheusLogin(t *testing.T) {
	t.Parallel()
	m, _, _ := setup(t)
	dir := t.TempDir()
	app := m.newAppRole(t, dir, strings.ReplaceAll(example(t, "prometheus/policy.hcl"), `"autopay/metrics"`, `"`+m.at+`/metrics"`))

	sink := filepath.Join(dir, "vault-token")
	m.runAgent(t, dir, strings.NewReplacer(
		"https://vault.example.com:8200", m.addr,
		`method "approle" {`, fmt.Sprintf("method \"approle\" {\n    mount_path = %q", app.mount),
		"/etc/prometheus/vault-role-id", app.roleID,
		"/etc/prometheus/vault-secret-id", app.secretID,
		"/run/prometheus/vault-token", sink,
	).Replace(example(t, "prometheus/agent.hcl")))
	login, err := os.ReadFile(sink)
	if err != nil {
		t.Fatal(err)
	}

	if status, _, text := m.scrape(t, string(login)); status != http.StatusOK || !strings.Contains(text, "autopay_build_info") {
		t.Errorf("scrape: %d\n%s", status, text)
	}
	forbidden := map[request]int{}
	for _, path := range []string{"token", "status", "config"} {
		forbidden[request{"GET", path}] = http.StatusForbidden
	}
	m.wantCodes(t, string(login), forbidden)
}

// appRoleLogin is what an agent logs in with.
type appRoleLogin struct {
	mount            string
	roleID, secretID string // files
}

func (s *server) newAppRole(t *testing.T, dir, rules string) appRoleLogin {
	t.Helper()
	name := "approle-" + random(4)
	if err := s.root().Sys().PutPolicyWithContext(t.Context(), name, rules); err != nil {
		t.Fatal(err)
	}
	err := s.root().Sys().EnableAuthWithOptionsWithContext(t.Context(), name, &api.EnableAuthOptions{Type: "approle"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.root().Sys().DisableAuth(name) })
	role := "auth/" + name + "/role/app"
	s.mustDo(t, http.MethodPut, role, pairs("token_policies", name))
	roleID := s.mustDo(t, http.MethodGet, role+"/role-id", nil).data["role_id"].(string)
	secretID := s.mustDo(t, http.MethodPut, role+"/secret-id", nil).data["secret_id"].(string)
	return appRoleLogin{
		mount:    "auth/" + name,
		roleID:   writeFile(t, dir, "role-id", roleID),
		secretID: writeFile(t, dir, "secret-id", secretID),
	}
}

// runAgent runs vault agent until it has logged in and rendered once.
func (s *server) runAgent(t *testing.T, dir, config string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, suite.vaultBin, "agent", "-exit-after-auth",
		"-config="+writeFile(t, dir, "agent.hcl", config))
	dieWithTests(cmd)
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	s.witness.see("output of vault agent", out, false)
	if err != nil {
		t.Fatalf("vault agent: %v\n%s", err, out)
	}
}

// mustDo sends a request with the root token to any path of the server.
func (s *server) mustDo(t *testing.T, method, path string, body any) answer {
	t.Helper()
	a, err := s.call(t.Context(), s.keys.root, method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	if a.status/100 != 2 {
		t.Fatalf("%s %s: %v", method, path, a)
	}
	return a
}

func example(t *testing.T, file string) string {
	t.Helper()
	return string(mustRead(t, "../examples/"+file))
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
