//go:build acceptance

package consumers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleTerraformToken applies terraform/token, whose provider can't be built from published Go modules. In place
// of the provider's ephemeral resource it puts an ephemeral variable with what that resource reads: each field of the
// secret, as a string. Source: terraform-provider-vault, internal/vault/secrets/ephemeral/generic_secret.go.
func TestExampleTerraformToken(t *testing.T) {
	t.Parallel()
	bin, err := exec.LookPath("terraform")
	if err != nil { // in CI too, for there may be no way to install it; make says so
		t.Skip("terraform is not on the PATH: NOT RUN")
	}
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	data := map[string]string{}
	for field, value := range m.Read(t, "token").Data {
		data[field] = fmt.Sprint(value)
	}

	tf := &terraform{bin: bin, dir: t.TempDir(), variables: map[string]any{"api_url": p.ResourceURL(), "autopay": data}}
	tf.env = []string{"HOME=" + tf.dir, "PATH=" + os.Getenv("PATH"), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1", "no_proxy=127.0.0.1"}
	main := filepath.Join(tf.dir, "main.tf")
	text := example(t, "terraform/token/main.tf")
	harness.WriteFile(t, main, text, 0o600)
	tf.mustRun(t, "fmt", "-check", "-diff")

	for pattern, instead := range map[string]string{
		`(?s)  required_providers {.*?\n  }\n`:                          "",
		`(?s)ephemeral "vault_generic_secret" "autopay" {.*?}`:          "variable \"autopay\" {\n  type = map(string)\n  ephemeral = true\n}",
		regexp.QuoteMeta("ephemeral.vault_generic_secret.autopay.data"): "var.autopay",
	} {
		changed := regexp.MustCompile(pattern).ReplaceAllString(text, instead)
		if changed == text {
			t.Fatalf("the example has no %s", pattern)
		}
		text = changed
	}
	harness.WriteFile(t, main, text, 0o600)
	tf.mustRun(t, "init")
	tf.mustRun(t, "plan", "-out=plan")
	tf.mustRun(t, "apply", "plan")

	if s := p.Stats(); s.ResourceRequests != 1 || s.ResourceRefused != 0 {
		t.Errorf("%d requests to the API, %d refused, want 1 that is accepted", s.ResourceRequests, s.ResourceRefused)
	}
	tf.mustRun(t, "show", "-json", "plan") // the output of run is searched for tokens
	if state := harness.ReadFile(t, filepath.Join(tf.dir, "terraform.tfstate")); bytes.Contains(state, []byte(data["access_token"])) {
		t.Error("the state holds the token")
	}
}
