//go:build acceptance

package consumers

import (
	"archive/zip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleTerraformSecret applies terraform/secret, and looks for the secrets in all that Terraform keeps.
func TestExampleTerraformSecret(t *testing.T) {
	t.Parallel()
	bin, err := exec.LookPath("terraform")
	if err != nil { // in CI too, where there may be no way to install it; make says so
		t.Skip("terraform is not on the PATH: NOT RUN")
	}
	m, p, cred := harness.Setup(t)
	secrets := map[string]any{"oslo": cred.Secret}
	tf := &terraform{bin: bin, dir: t.TempDir(), variables: map[string]any{
		"mount": m.At, "token_url": p.TokenURL(), "client_ids": map[string]any{"oslo": cred.ID}, "client_secrets": secrets,
	}}
	cli := t.TempDir()
	if err := os.Symlink(harness.VaultBin, filepath.Join(cli, "vault")); err != nil {
		t.Fatal(err)
	}
	tf.env = []string{
		"HOME=" + tf.dir, "PATH=" + cli + ":" + os.Getenv("PATH"), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1",
		"VAULT_ADDR=" + m.Addr, "VAULT_TOKEN=" + m.RootToken,
	}
	harness.WriteFile(t, filepath.Join(tf.dir, "main.tf"), example(t, "terraform/secret/main.tf"), 0o600)
	tf.mustRun(t, "fmt", "-check", "-diff")
	tf.mustRun(t, "init")

	apply := func(requests int) {
		t.Helper()
		tf.mustRun(t, "plan", "-out=plan")
		tf.mustRun(t, "show", "-json", "plan") // run searches the output
		tf.mustRun(t, "apply", "plan")
		tf.isUnchanged(t)
		p.WantRequests(t, cred, requests)
		tf.keepsNoSecret(t)
	}
	apply(1)
	m.Token(t, "oslo")

	tf.variables["rotation_period"] = 7200
	apply(1)
	if period := m.Token(t, "oslo").RotationPeriod; period != 7200 {
		t.Errorf("rotation_period %d, want 7200", period)
	}

	secrets["oslo"] = harness.NewSecret()
	p.SetClient(cred.ID, secrets["oslo"].(string))
	tf.isUnchanged(t) // Terraform can't see it
	tf.variables["client_secrets_version"] = 2
	apply(2)

	tf.variables["client_secrets_version"], secrets["oslo"] = 3, harness.NewSecret() // which Autopay does not know
	if out, code := tf.run(t, "apply", "-auto-approve"); code != 1 || !strings.Contains(out, "Autopay refused the credential") {
		t.Errorf("apply of a wrong secret: exit code %d, want 1 and the reason\n%s", code, out)
	}
	tf.keepsNoSecret(t)
	m.Token(t, "oslo")
}

// keepsNoSecret searches every file in the directory, and what is in the plan, except the file with the variables.
func (tf *terraform) keepsNoSecret(t *testing.T) {
	t.Helper()
	searched := map[string]bool{}
	search := func(name string, text []byte) {
		searched[name] = true
		for _, leak := range harness.FindSecrets(text) {
			t.Errorf("%s holds %s", name, leak)
		}
	}
	if err := os.Remove(filepath.Join(tf.dir, "terraform.tfvars.json")); err != nil { // run writes it again
		t.Fatal(err)
	}
	err := filepath.WalkDir(tf.dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			search(strings.TrimPrefix(path, tf.dir+"/"), harness.ReadFile(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := zip.OpenReader(filepath.Join(tf.dir, "plan"))
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	for _, file := range plan.File {
		r, err := file.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		search("plan: "+file.Name, text)
	}
	for _, name := range []string{"terraform.tfstate", "plan: tfplan", "plan: tfstate"} {
		if !searched[name] {
			t.Errorf("%s was not there to be searched: %v", name, searched)
		}
	}
}
