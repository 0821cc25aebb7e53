//go:build acceptance

package consumers

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestExampleTerraform applies the example with the real terraform and the
// real provider, built from the module in terraform/.
func TestExampleTerraform(t *testing.T) {
	t.Parallel()
	s, p := harness.SharedVault(t), harness.StartAutopay(t)
	byDefault, oslo := p.NewCredential(), p.NewCredential()
	m := harness.Mount{Server: s, At: "autopay-" + harness.Random(4)}
	secrets := map[string]any{"default": byDefault.Secret, "oslo": oslo.Secret}
	tf := newTerraform(t, s, "", map[string]any{
		"mount":          m.At,
		"token_url":      p.TokenURL(),
		"client_ids":     map[string]any{"default": byDefault.ID, "oslo": oslo.ID},
		"client_secrets": secrets,
	})
	t.Cleanup(func() { _ = s.Root().Sys().Unmount(m.At) }) // destroyed already, unless the test failed
	rc := filepath.Join(tf.dir, "terraform.rc")
	harness.WriteFile(t, rc, fmt.Sprintf("provider_installation {\n  dev_overrides { \"hashicorp/vault\" = %q }\n}\n",
		filepath.Dir(harness.Tool(t, "terraform-provider-vault"))), 0o600)
	tf.env = append(tf.env, "TF_CLI_CONFIG_FILE="+rc)
	tf.run(t, 0, "validate")

	applied := func(wantDefault, wantOslo int) {
		t.Helper()
		tf.run(t, 0, "apply", "-auto-approve")
		tf.isUnchanged(t)
		p.WantRequests(t, byDefault, wantDefault)
		p.WantRequests(t, oslo, wantOslo)
	}
	replaceSecret := func() {
		secret := harness.NewSecret()
		p.SetClient(oslo.ID, secret)
		secrets["oslo"] = secret
	}

	applied(1, 1)
	first := m.Token(t, "")
	applied(1, 1)

	for policy, wants := range map[string]map[string]int{
		"-app-oslo": {
			"GET token/oslo":  http.StatusOK,
			"GET token":       http.StatusForbidden,
			"GET config/oslo": http.StatusForbidden,
			"PUT rotate/oslo": http.StatusForbidden,
		},
		"-operator": {
			"GET token/oslo":  http.StatusForbidden,
			"GET status/oslo": http.StatusOK,
			"GET config/oslo": http.StatusOK,
			"LIST config":     http.StatusOK,
		},
	} {
		rules, err := s.Root().Sys().GetPolicy(m.At + policy)
		if err != nil {
			t.Fatal(err)
		}
		m.As(s.TokenFor(t, rules)).WantCodes(t, wants)
	}

	tf.variables["rotation_period"] = 7200
	applied(1, 1)
	if b := m.Token(t, ""); b.AccessToken != first.AccessToken || b.RotationPeriod != 7200 {
		t.Errorf("a new rotation_period: token changed %v, rotation_period %d, want the same token and 7200",
			b.AccessToken != first.AccessToken, b.RotationPeriod)
	}

	// Terraform undoes a change made by hand, without a request to Autopay.
	m.MustWrite(t, "config/oslo", harness.Fields("rotation_period", 60))
	tf.run(t, 2, "plan", "-detailed-exitcode")
	applied(1, 1)

	// The output tells of a secret that is replaced by hand, which the provider does not notice.
	before := tf.run(t, 0, "output", "client_secret_updated_time")
	replaceSecret()
	m.MustWrite(t, "config/oslo", harness.Fields("client_secret", secrets["oslo"]))
	if out := tf.run(t, 2, "plan", "-detailed-exitcode"); !strings.Contains(out, "client_secret_updated_time") {
		t.Errorf("plan after a secret was replaced by hand:\n%s", out)
	}
	applied(1, 2)
	if after := tf.run(t, 0, "output", "client_secret_updated_time"); after == before {
		t.Errorf("client_secret_updated_time did not change: %s", after)
	}
	replaceSecret()
	applied(1, 3)

	tf.run(t, 0, "destroy", "-auto-approve")
	if a := m.Read(t, "token"); a.Status != http.StatusNotFound && a.Status != http.StatusForbidden {
		t.Errorf("after destroy: %v", a)
	}
	p.WantRequests(t, oslo, 3)
}

// TestExampleTerraformSecret applies terraform/secret, and looks for the secrets in all that Terraform keeps.
func TestExampleTerraformSecret(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	secrets := map[string]any{"oslo": cred.Secret}
	tf := newTerraform(t, m.Server, "secret/", map[string]any{
		"mount": m.At, "token_url": p.TokenURL(), "client_ids": map[string]any{"oslo": cred.ID}, "client_secrets": secrets,
	})
	tf.run(t, 0, "init")

	apply := func(requests int) {
		t.Helper()
		tf.run(t, 0, "plan", "-out=plan")
		tf.run(t, 0, "show", "-json", "plan") // run searches the output
		tf.run(t, 0, "apply", "plan")
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
	if out := tf.run(t, 1, "apply", "-auto-approve"); !strings.Contains(out, "Autopay refused the credential") {
		t.Errorf("apply of a wrong secret does not tell the reason:\n%s", out)
	}
	tf.keepsNoSecret(t)
	m.Token(t, "oslo")
}

// TestExampleTerraformToken applies terraform/token, whose provider can't be built from published Go modules. In place
// of the provider's ephemeral resource it puts an ephemeral variable with what that resource reads: each field of the
// secret, as a string. Source: terraform-provider-vault, internal/vault/secrets/ephemeral/generic_secret.go.
func TestExampleTerraformToken(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	data := map[string]string{}
	for field, value := range m.Read(t, "token").Data {
		data[field] = fmt.Sprint(value)
	}
	tf := newTerraform(t, m.Server, "token/", map[string]any{"api_url": p.ResourceURL(), "autopay": data})

	const variable = "variable \"autopay\" {\n  type = map(string)\n  ephemeral = true\n}"
	text := example(t, "terraform/token/main.tf")
	for pattern, instead := range map[string]string{
		`(?s)  required_providers {.*?\n  }\n`:                          "",
		`(?s)ephemeral "vault_generic_secret" "autopay" {.*?}`:          variable,
		regexp.QuoteMeta("ephemeral.vault_generic_secret.autopay.data"): "var.autopay",
	} {
		changed := regexp.MustCompile(pattern).ReplaceAllString(text, instead)
		if changed == text {
			t.Fatalf("the example has no %s", pattern)
		}
		text = changed
	}
	harness.WriteFile(t, filepath.Join(tf.dir, "main.tf"), text, 0o600)
	tf.run(t, 0, "init")
	tf.run(t, 0, "plan", "-out=plan")
	tf.run(t, 0, "apply", "plan")

	if s := p.Stats(); s.ResourceRequests != 1 || s.ResourceRefused != 0 {
		t.Errorf("%d requests to the API, %d refused, want 1 that is accepted", s.ResourceRequests, s.ResourceRefused)
	}
	tf.run(t, 0, "show", "-json", "plan") // run searches the output
	if bytes.Contains(harness.ReadFile(t, filepath.Join(tf.dir, "terraform.tfstate")), []byte(data["access_token"])) {
		t.Error("the state holds the token")
	}
}

// terraform is a working directory with an example in it.
type terraform struct {
	dir       string
	env       []string
	variables map[string]any
}

// newTerraform makes a directory of the .tf files in a folder below examples/terraform/.
func newTerraform(t *testing.T, s *harness.Server, folder string, variables map[string]any) *terraform {
	t.Helper()
	// In CI too, where there may be no way to install it. make says so.
	if _, err := exec.LookPath("terraform"); err != nil {
		t.Skip("terraform is not on the PATH: NOT RUN")
	}
	tf := &terraform{dir: t.TempDir(), variables: variables}
	files, err := filepath.Glob("../../examples/terraform/" + folder + "*.tf")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		harness.WriteFile(t, filepath.Join(tf.dir, filepath.Base(file)), harness.ReadFile(t, file), 0o600)
	}
	tf.env = s.Env(s.RootToken, "HOME="+tf.dir, vaultOnPath(t), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1",
		"no_proxy=127.0.0.1")
	tf.run(t, 0, "fmt", "-check", "-diff")
	return tf
}

// run fails the test unless terraform ends with an exit code. It returns what terraform prints, which must hold no
// secret.
func (tf *terraform) run(t *testing.T, code int, args ...string) string {
	t.Helper()
	values, err := json.Marshal(tf.variables)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, filepath.Join(tf.dir, "terraform.tfvars.json"), values, 0o600)
	cmd := exec.CommandContext(t.Context(), "terraform", append(args, "-no-color")...)
	cmd.Dir, cmd.Env = tf.dir, tf.env
	out, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("terraform %v: %v", args, err)
	}
	for _, leak := range harness.FindSecrets(out) {
		t.Errorf("terraform %v prints %s", args, leak)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("terraform %v: exit code %d, want %d\n%s", args, got, code, out)
	}
	return string(out)
}

// isUnchanged fails the test unless the plan is empty.
func (tf *terraform) isUnchanged(t *testing.T) {
	t.Helper()
	tf.run(t, 0, "plan", "-detailed-exitcode")
}

// keepsNoSecret searches every file in the directory, and what is in the plan, except the file with the variables.
func (tf *terraform) keepsNoSecret(t *testing.T) {
	t.Helper()
	if err := os.Remove(filepath.Join(tf.dir, "terraform.tfvars.json")); err != nil { // run writes it again
		t.Fatal(err)
	}
	plan, err := zip.OpenReader(filepath.Join(tf.dir, "plan"))
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	searched := map[string]bool{}
	for _, files := range []fs.FS{os.DirFS(tf.dir), plan} {
		err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			text, err := fs.ReadFile(files, path)
			for _, leak := range harness.FindSecrets(text) {
				t.Errorf("%s holds %s", path, leak)
			}
			searched[path] = true
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"terraform.tfstate", "tfplan", "tfstate"} {
		if !searched[name] {
			t.Errorf("%s was not there to be searched: %v", name, searched)
		}
	}
}
