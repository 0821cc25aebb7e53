//go:build acceptance

package consumers

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExamplePrometheusLogin runs the agent of examples/prometheus, and asks
// as Prometheus does with the Vault token that it left: Authorization: Bearer.
func TestExamplePrometheusLogin(t *testing.T) {
	t.Parallel()
	m := exampleVault(t)
	sink := filepath.Join(t.TempDir(), "vault-token")
	startVaultProgram(t, "agent", example(t, "prometheus/agent.hcl",
		"https://vault.example.com:8200", m.Addr,
		"/etc/prometheus/vault", appRole(t, m.Server, "prometheus", "metrics.hcl"),
		"/run/prometheus/vault-token", sink))
	harness.Eventually(t, time.Minute, "Agent leaves no Vault token", func() bool {
		info, err := os.Stat(sink)
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Fatalf("the file with the Vault token has mode %v", info.Mode())
		}
		return err == nil && info.Size() > 0
	})
	login := string(harness.ReadFile(t, sink))
	if status, _, text := m.Scrape(t, login); status != http.StatusOK || !strings.Contains(text, "autopay_build_info") {
		t.Errorf("scrape: %d\n%s", status, text)
	}
}
