//go:build acceptance

package consumers

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// injectedConfig returns the configuration that the Agent injector makes of the
// annotations in examples/kubernetes (hashicorp/vault-k8s v1.7.6,
// agent-inject/agent/config.go). It differs where it must: it logs in by
// AppRole, writes to dir, and pauses for less time between its 12 retries.
func injectedConfig(t *testing.T, s *harness.Server, dir string, exitOnRetryFailure bool) string {
	t.Helper()
	etc := appRole(t, s, "injector-"+harness.Random(2), "app.hcl")
	config, err := json.Marshal(map[string]any{
		"auto_auth": map[string]any{
			"method": map[string]any{
				"type":        "approle",
				"min_backoff": "50ms", // annotation auth-min-backoff
				"max_backoff": "200ms",
				"config": map[string]any{
					"role_id_file_path":                   filepath.Join(etc, "role-id"),
					"secret_id_file_path":                 filepath.Join(etc, "secret-id"),
					"remove_secret_id_file_after_reading": false,
				},
			},
			"sink": []any{map[string]any{"type": "file", "config": map[string]any{"path": filepath.Join(dir, ".vault-token")}}},
		},
		"exit_after_auth": false,
		"pid_file":        filepath.Join(dir, ".pid"),
		"vault":           map[string]any{"address": s.Addr},
		"template": []any{map[string]any{
			"destination":     filepath.Join(dir, "autopay-token"),
			"contents":        annotation(t, "agent-inject-template-autopay-token"),
			"left_delimiter":  "{{",
			"right_delimiter": "}}",
			"perms":           annotation(t, "agent-inject-perms-autopay-token"),
		}},
		"template_config": map[string]any{"exit_on_retry_failure": exitOnRetryFailure},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(config)
}

// annotation returns the value of one of the injector's annotations in the
// example; without it, the injector's default.
func annotation(t *testing.T, name string) string {
	t.Helper()
	_, rest, found := strings.Cut(example(t, "kubernetes/agent-injector.yaml"), "vault.hashicorp.com/"+name+": ")
	value, _, _ := strings.Cut(rest, "\n")
	if !found && name == "template-config-exit-on-retry-failure" {
		return "true"
	}
	if !found {
		t.Fatalf("the example has no annotation %s", name)
	}
	return strings.Trim(value, `"'`)
}

// TestExampleRetries has an outage of Autopay outlive the token and the retries
// of consumers that stop retrying by default. With the examples' settings they
// go on, and have the next token once there is one.
func TestExampleRetries(t *testing.T) {
	t.Parallel()
	m, p := exampleVault(t), harness.StartAutopay(t)
	p.SetLifetime(12 * time.Second)
	m.MustWrite(t, "config", p.NewCredential().Config("rotation_period", 8))

	// Beside their own retries they have those of Vault's client, which only make each of them last longer.
	const once = "VAULT_MAX_RETRIES=0"
	type consumer struct {
		*program
		file string // with the token
	}
	injected := func(exitOnRetryFailure bool) consumer {
		dir := t.TempDir()
		return consumer{
			startVaultProgram(t, "agent", injectedConfig(t, m.Server, dir, exitOnRetryFailure), once),
			filepath.Join(dir, "autopay-token"),
		}
	}
	bin := harness.Tool(t, "consul-template")
	consulTemplate := func(attempts string) consumer {
		dir := t.TempDir()
		file := filepath.Join(dir, "autopay-token")
		config := example(t, "consul-template/consul-template.hcl",
			"https://vault.example.com:8200", m.Addr, "/run/shop/autopay-token", file,
			"attempts = 0", "backoff = \"50ms\"\n max_backoff = \"200ms\"\n "+attempts)
		vaultToken := m.TokenFor(t, example(t, "policies/app.hcl"))
		return consumer{
			startProgram(t, m.Env(vaultToken, once), bin, "-log-level=info",
				"-config="+harness.WriteFile(t, filepath.Join(dir, "config.hcl"), config, 0o600)),
			file,
		}
	}
	annotated, err := strconv.ParseBool(annotation(t, "template-config-exit-on-retry-failure"))
	if err != nil {
		t.Fatal(err)
	}
	lasting := map[string]consumer{
		"an injected Agent": injected(annotated),
		"consul-template":   consulTemplate("attempts = 0"),
	}
	ending := map[string]consumer{
		"an injected Agent by default": injected(true),
		"consul-template by default":   consulTemplate("attempts = 12"),
	}
	code := map[string]int{"an injected Agent by default": 1, "consul-template by default": 14}

	token := func(c consumer) string {
		text, _ := os.ReadFile(c.file) // not there yet
		return string(text)
	}
	holdLive := func(consumers map[string]consumer) {
		t.Helper()
		for name, c := range consumers {
			harness.Eventually(t, time.Minute, name+" has no live token", func() bool { return p.Valid(token(c)) })
		}
	}
	holdLive(lasting)
	holdLive(ending)

	p.SetFault(harness.Down)
	began := time.Now()
	for name, c := range ending {
		if got := c.exitCode(t, 2*time.Minute); got != code[name] {
			t.Errorf("%s ends with code %d, want %d", name, got, code[name])
		}
		t.Logf("%s ended within %v", name, time.Since(began).Round(time.Second))
		if p.Valid(token(c)) {
			t.Errorf("%s ends while its token lives", name)
		}
	}
	for name, c := range lasting {
		if !c.running() || token(c) == "" {
			t.Errorf("%s has ended, or its file is gone", name)
		}
	}

	p.SetFault(autopaysim.Fault{})
	p.SetLifetime(time.Hour)
	m.MustWrite(t, "config", p.NewCredential().Config()) // asks at once, whatever the backoff says
	holdLive(lasting)
	for name, c := range ending {
		if p.Valid(token(c)) {
			t.Errorf("%s has a live token after it ended", name)
		}
	}
}
