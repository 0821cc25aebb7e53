//go:build acceptance

package consumers

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
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
	mountPath := "autopay-" + harness.Random(4)
	tf := newTerraform(t, s, map[string]any{
		"mount":          mountPath,
		"token_url":      p.TokenURL(),
		"client_ids":     map[string]any{"default": byDefault.ID, "oslo": oslo.ID},
		"client_secrets": map[string]any{"default": byDefault.Secret, "oslo": oslo.Secret},
	})

	asked := func(wantDefault, wantOslo int) {
		t.Helper()
		p.WantRequests(t, byDefault, wantDefault)
		p.WantRequests(t, oslo, wantOslo)
	}
	m := harness.Mount{Server: s, At: mountPath}

	tf.apply(t)
	asked(1, 1)
	first := m.Token(t, "")

	tf.isUnchanged(t)
	tf.apply(t)
	asked(1, 1)

	app, err := s.Root().Sys().GetPolicyWithContext(t.Context(), mountPath+"-app-oslo")
	if err != nil {
		t.Fatal(err)
	}
	m.As(s.TokenFor(t, app)).WantCodes(t, map[string]int{
		"GET token/oslo":  http.StatusOK,
		"GET token":       http.StatusForbidden,
		"GET config/oslo": http.StatusForbidden,
		"PUT rotate/oslo": http.StatusForbidden,
	})
	operator, err := s.Root().Sys().GetPolicyWithContext(t.Context(), mountPath+"-operator")
	if err != nil {
		t.Fatal(err)
	}
	m.As(s.TokenFor(t, operator)).WantCodes(t, map[string]int{
		"GET token/oslo":  http.StatusForbidden,
		"GET status/oslo": http.StatusOK,
		"GET config/oslo": http.StatusOK,
		"LIST config":     http.StatusOK,
	})

	tf.variables["rotation_period"] = 7200
	tf.apply(t)
	asked(1, 1)
	if b := m.Token(t, ""); b.AccessToken != first.AccessToken || b.RotationPeriod != 7200 {
		t.Errorf("a new rotation_period: token changed %v, rotation_period %d, want the same token and 7200",
			b.AccessToken != first.AccessToken, b.RotationPeriod)
	}

	// Terraform undoes a change made by hand, without a request to Autopay.
	m.MustWrite(t, "config/oslo", harness.Fields("rotation_period", 60))
	if out, code := tf.run(t, "plan", "-detailed-exitcode"); code != 2 {
		t.Errorf("plan after a change by hand: exit code %d, want 2\n%s", code, out)
	}
	tf.apply(t)
	tf.isUnchanged(t)
	asked(1, 1)

	// The output tells of a secret that is replaced by hand, which the provider does not notice.
	before := tf.mustRun(t, "output", "client_secret_updated_time")
	secret := harness.NewSecret()
	p.SetClient(oslo.ID, secret)
	m.MustWrite(t, "config/oslo", harness.Fields("client_secret", secret))
	asked(1, 2)
	if out, code := tf.run(t, "plan", "-detailed-exitcode"); code != 2 || !strings.Contains(out, "client_secret_updated_time") {
		t.Errorf("plan after a secret was replaced by hand: exit code %d, want 2\n%s", code, out)
	}
	tf.variables["client_secrets"].(map[string]any)["oslo"] = secret
	tf.apply(t)
	asked(1, 2)
	if after := tf.mustRun(t, "output", "client_secret_updated_time"); after == before {
		t.Errorf("client_secret_updated_time did not change: %s", after)
	}

	secret = harness.NewSecret()
	p.SetClient(oslo.ID, secret)
	tf.variables["client_secrets"].(map[string]any)["oslo"] = secret
	tf.apply(t)
	asked(1, 3)

	tf.mustRun(t, "destroy", "-auto-approve")
	asked(1, 3)
	if a := m.Read(t, "token"); a.Status != http.StatusNotFound && a.Status != http.StatusForbidden {
		t.Errorf("after destroy: %v", a)
	}
}

// TestExampleTerraformCalls makes the calls that the provider makes, so that they
// are tested without terraform. Source: terraform-provider-vault,
// vault/resource_generic_endpoint.go.
func TestExampleTerraformCalls(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	data := cred.Config("rotation_period", json.Number("0"), "token_request_limit", json.Number("100"))

	// genericEndpointResourceRead overwrites what was given with what a read shows.
	// The plan is empty if that changes nothing.
	unchanged := func() {
		t.Helper()
		state := maps.Clone(data)
		for field, value := range m.Read(t, "config").Data {
			if _, given := data[field]; given {
				state[field] = value
			}
		}
		if !maps.Equal(state, data) {
			t.Errorf("a read makes %v of what was written, %v: a change at every plan", redact(state), redact(data))
		}
	}
	// genericEndpointResourceWrite sends all fields, changed or not, and reads.
	apply := func() {
		t.Helper()
		m.MustWrite(t, "config", data)
		unchanged()
	}

	apply()
	p.WantRequests(t, cred, 1)

	unchanged() // a second apply refreshes, and has nothing to write
	p.WantRequests(t, cred, 1)

	apply() // as after terraform apply -replace, or with the state lost
	p.WantRequests(t, cred, 1)

	data["rotation_period"] = json.Number("7200")
	apply()
	p.WantRequests(t, cred, 1)

	data["client_secret"] = harness.NewSecret()
	p.SetClient(cred.ID, data["client_secret"].(string))
	apply()
	p.WantRequests(t, cred, 2)

	m.Do(t, http.MethodDelete, "config", nil).Want(t, "delete", http.StatusNoContent)
	m.Read(t, "config").Want(t, "read of what is gone", http.StatusNotFound)
	p.WantRequests(t, cred, 2)
}

func redact(config map[string]any) map[string]any {
	shown := maps.Clone(config)
	delete(shown, "client_secret")
	return shown
}

// terraform is a working directory with the example in it.
type terraform struct {
	bin       string
	dir       string
	env       []string
	variables map[string]any
}

func newTerraform(t *testing.T, s *harness.Server, variables map[string]any) *terraform {
	t.Helper()
	bin, err := exec.LookPath("terraform")
	if err != nil { // in CI too, where there may be no way to install it; make says so
		t.Skip("terraform is not on the PATH: NOT RUN. TestExampleTerraformCalls makes the same calls")
	}
	tf := &terraform{bin: bin, dir: t.TempDir(), variables: variables}

	for _, file := range []string{"main.tf", "variables.tf"} {
		harness.WriteFile(t, filepath.Join(tf.dir, file), example(t, "terraform/"+file), 0o600)
	}

	provider := filepath.Dir(harness.Tool(t, "terraform-provider-vault"))
	rc := filepath.Join(tf.dir, "terraform.rc")
	overrides := fmt.Sprintf("provider_installation {\n  dev_overrides { \"hashicorp/vault\" = %q }\n}\n", provider)
	harness.WriteFile(t, rc, []byte(overrides), 0o600)

	tf.env = []string{
		"HOME=" + tf.dir, "PATH=" + os.Getenv("PATH"), "CHECKPOINT_DISABLE=1", "TF_IN_AUTOMATION=1",
		"TF_CLI_CONFIG_FILE=" + rc, "VAULT_ADDR=" + s.Addr, "VAULT_TOKEN=" + s.RootToken,
	}
	t.Cleanup(func() { _ = s.Root().Sys().Unmount(variables["mount"].(string)) }) // destroyed already, unless the test failed
	tf.mustRun(t, "fmt", "-check", "-diff")
	tf.mustRun(t, "validate")
	return tf
}

// run returns what terraform prints, which must hold no secret, and its exit code.
func (tf *terraform) run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	values, err := json.Marshal(tf.variables)
	if err != nil {
		t.Fatal(err)
	}
	harness.WriteFile(t, filepath.Join(tf.dir, "terraform.tfvars.json"), values, 0o600)
	cmd := exec.CommandContext(t.Context(), tf.bin, append(args, "-no-color")...)
	cmd.Dir, cmd.Env = tf.dir, tf.env
	out, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("terraform %v: %v", args, err)
	}
	for _, leak := range harness.FindSecrets(out) {
		t.Errorf("terraform %v prints %s", args, leak)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (tf *terraform) mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, code := tf.run(t, args...)
	if code != 0 {
		t.Fatalf("terraform %v: exit code %d\n%s", args, code, out)
	}
	return out
}

func (tf *terraform) apply(t *testing.T) {
	t.Helper()
	tf.mustRun(t, "apply", "-auto-approve")
}

// isUnchanged fails the test unless the plan is empty.
func (tf *terraform) isUnchanged(t *testing.T) {
	t.Helper()
	if out, code := tf.run(t, "plan", "-detailed-exitcode"); code != 0 {
		t.Errorf("plan: exit code %d, want 0, nothing to change\n%s", code, out)
	}
}
