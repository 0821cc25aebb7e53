//go:build acceptance

// Package kubernetes applies examples/kubernetes to a real API server, and logs
// in to a real Vault with its service accounts.
package kubernetes

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const examples = "../../examples/kubernetes"

func TestExampleKubernetes(t *testing.T) {
	c := startCluster(t)
	vault := harness.StartVault(t)
	vault.AddPlugin(t, "kubernetes", "vault-plugin-auth-kubernetes", api.PluginTypeCredential)
	autopay := harness.StartAutopay(t)
	cred := autopay.NewCredential()
	m := harness.EnableAt(t, vault, "autopay")
	m.MustWrite(t, "config", cred.Config())

	shown := c.followReadme(t, vault)
	token := m.Token(t, "").AccessToken
	if !strings.Contains(shown, token) {
		t.Errorf("the README's last command does not show the token but\n%s", shown)
	}

	t.Run("other logins", func(t *testing.T) { c.refusesOthers(t, vault) })
	c.define(t)
	t.Run("manifests", func(t *testing.T) { c.takesManifests(t, m) })
	t.Run("mistakes", c.refusesMistakes)
	autopay.WantRequests(t, cred, 1)
	t.Run("External Secrets", func(t *testing.T) {
		c.runsExternalSecrets(t, m, func() { m.MustWrite(t, "config", autopay.NewCredential().Config()) })
	})
}

var commands = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// followReadme runs the README's commands as they are written, in a copy of
// their folder, and returns what they print.
func (c *cluster) followReadme(t *testing.T, vault *harness.Server) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(examples)); err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(harness.VaultBin, filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	script := "set -euo pipefail\n"
	for _, block := range commands.FindAllStringSubmatch(string(harness.ReadFile(t, examples+"/README.md")), -1) {
		script += block[1]
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = c.environment("PATH="+bin+":"+os.Getenv("PATH"), "VAULT_ADDR="+vault.Addr, "VAULT_TOKEN="+vault.RootToken)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// login trades a service account's token for one of Vault.
func (c *cluster) login(
	t *testing.T, vault *harness.Server, role, account string, more ...string,
) (token string, refused error) {
	t.Helper()
	jwt := c.must(t, "", append([]string{"create", "token", account, "--namespace=shop"}, more...)...)
	secret, err := vault.Client("").Logical().WriteWithContext(t.Context(), "auth/kubernetes/login",
		map[string]any{"role": role, "jwt": jwt})
	if err != nil {
		return "", err
	}
	return secret.Auth.ClientToken, nil
}

// refusesOthers shows that Vault asks the API server whom a token belongs to,
// and what it is for.
func (c *cluster) refusesOthers(t *testing.T, vault *harness.Server) {
	t.Helper()
	c.must(t, "", "create", "serviceaccount", "other", "--namespace=shop")
	for _, test := range []struct {
		name, account string
		args          []string
		want          string
	}{
		{"another account", "other", []string{"--audience=vault"}, "service account name not authorized"},
		{"no audience", "shop", nil, "invalid audience"},
		{"another audience", "shop", []string{"--audience=elsewhere"}, "invalid audience"},
	} {
		_, err := c.login(t, vault, "shop", test.account, test.args...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
	}
}
