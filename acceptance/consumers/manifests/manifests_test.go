// Package manifests checks what an API server does not see in
// examples/kubernetes: the injector's annotations, the templates, and the names
// by which the objects of a file refer to each other. It is a module of its own
// because its dependencies must not mix with the engine's. The suite in
// acceptance/kubernetes applies the files to an API server.
package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"sigs.k8s.io/yaml"
)

const (
	examples = "../../../examples/kubernetes"
	injector = "vault.hashicorp.com/"
)

// The injector's annotations (hashicorp/vault-k8s,
// agent-inject/agent/annotations.go) that the example may use: those that stand
// alone, and those that end in the name of a secret.
var (
	annotations = []string{
		"agent-inject", "role", "agent-run-as-same-user", "agent-service-account-token-volume-name",
		"template-config-exit-on-retry-failure",
	}
	ofASecret = []string{"agent-inject-secret-", "agent-inject-template-", "agent-inject-perms-"}
)

func checkAnnotations(all map[string]string) error {
	for key := range all {
		name, ok := strings.CutPrefix(key, injector)
		if !ok {
			return fmt.Errorf("annotation %s is not the injector's", key)
		}
		if slices.Contains(annotations, name) {
			continue
		}
		at := slices.IndexFunc(ofASecret, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
		if at < 0 {
			return fmt.Errorf("the injector has no annotation %s", key)
		}
		secret := strings.TrimPrefix(name, ofASecret[at])
		if _, ok := all[injector+"agent-inject-secret-"+secret]; !ok {
			return fmt.Errorf("annotation %s is for a secret that no other annotation names", key)
		}
	}
	return nil
}

func TestAnnotations(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, old, mistake string }{
		{"as it is", "", ""},
		{"unknown", "agent-inject-perms-", "agent-inject-perm-"},
		{"suffix where there is none", "com/role:", "com/role-name:"},
		{"template of another secret", "template-autopay-token", "template-autopay"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := read(t, "agent-injector.yaml")
			if !strings.Contains(text, test.old) {
				t.Fatalf("the example does not hold %q", test.old)
			}
			var injected deployment
			find(t, strings.Replace(text, test.old, test.mistake, 1), "Deployment", &injected)
			err := checkAnnotations(injected.Spec.Template.Metadata.Annotations)
			if (err == nil) != (test.old == "") {
				t.Errorf("%q instead of %q: %v", test.mistake, test.old, err)
			}
		})
	}
}

// The response that Vault gives, as the templates see it.
var response = map[string]any{
	"access_token": "the-token", "token_type": "Bearer", "scope": "customer_club", "rotation_period": 64800,
	"ttl": 16320, "expire_time": "2026-01-05T18:00:00Z", "last_vault_rotation": "2026-01-04T18:00:00Z",
}

type deployment struct {
	Metadata struct{ Name string }
	Spec     struct {
		Template struct {
			Metadata struct{ Annotations map[string]string }
			Spec     struct {
				Containers []struct {
					Env []struct {
						ValueFrom struct {
							SecretKeyRef struct{ Name, Key string }
						}
					}
				}
				Volumes []struct {
					Name   string
					Secret struct{ SecretName string }
				}
			}
		}
	}
}

// vaultDynamicSecret is that of Vault Secrets Operator.
type vaultDynamicSecret struct {
	Spec struct {
		VaultAuthRef string
		Destination  struct {
			Name           string
			Transformation struct {
				ExcludeRaw bool
				Excludes   []string
				Templates  map[string]struct{ Text string }
			}
		}
		RolloutRestartTargets []struct{ Name string }
	}
}

type externalSecret struct {
	Spec struct {
		Target struct {
			Name     string
			Template struct{ Data map[string]string }
		}
		DataFrom []struct {
			SourceRef struct {
				GeneratorRef struct{ Name string }
			}
		}
	}
}

// TestOnlyTheTokenIsRendered runs the templates of three files. They must
// render nothing else, because it would change between rotations or not be needed.
func TestOnlyTheTokenIsRendered(t *testing.T) {
	t.Parallel()

	var injected deployment
	find(t, read(t, "agent-injector.yaml"), "Deployment", &injected)
	text := injected.Spec.Template.Metadata.Annotations[injector+"agent-inject-template-autopay-token"]
	path := injected.Spec.Template.Metadata.Annotations[injector+"agent-inject-secret-autopay-token"]
	secret := func(of string) (map[string]any, error) {
		if of != path {
			return nil, fmt.Errorf("the template reads %s, the annotation says %s", of, path)
		}
		return map[string]any{"Data": response}, nil
	}
	rendersToken(t, text, template.FuncMap{"secret": secret}, nil)

	var dynamic vaultDynamicSecret
	find(t, read(t, "vault-secrets-operator.yaml"), "VaultDynamicSecret", &dynamic)
	change := dynamic.Spec.Destination.Transformation
	if len(change.Templates) != 1 || !change.ExcludeRaw || len(change.Excludes) != 1 {
		t.Fatalf("%+v: more than one field", change)
	}
	for field := range response {
		if !regexp.MustCompile(change.Excludes[0]).MatchString(field) {
			t.Errorf("the Secret also holds %s", field)
		}
	}
	get := func(from map[string]any, key string) any { return from[key] } // sprig's
	rendersToken(t, change.Templates["access_token"].Text, template.FuncMap{"get": get}, map[string]any{"Secrets": response})

	var external externalSecret
	find(t, read(t, "external-secrets.yaml"), "ExternalSecret", &external)
	if data := external.Spec.Target.Template.Data; len(data) != 1 {
		t.Errorf("%v: more than one field", data)
	}
	rendersToken(t, external.Spec.Target.Template.Data["access_token"], nil, response)
}

func rendersToken(t *testing.T, text string, funcs template.FuncMap, data any) {
	t.Helper()
	parsed, err := template.New("").Funcs(funcs).Option("missingkey=error").Parse(text)
	if err != nil {
		t.Error(err)
		return
	}
	var out strings.Builder
	if err := parsed.Execute(&out, data); err != nil || out.String() != "the-token" {
		t.Errorf("%s renders %q, %v", text, out.String(), err)
	}
}

// TestNamesMeet follows the references between the objects of a file.
func TestNamesMeet(t *testing.T) {
	t.Parallel()
	var injected, restarted, mounted deployment
	find(t, read(t, "agent-injector.yaml"), "Deployment", &injected)
	pod := injected.Spec.Template
	if login := pod.Metadata.Annotations[injector+"agent-service-account-token-volume-name"]; pod.Spec.Volumes[0].Name != login {
		t.Errorf("agent-injector.yaml has no volume %q", login)
	}

	var connection struct{ Metadata struct{ Name string } }
	var auth struct {
		Metadata struct{ Name string }
		Spec     struct{ VaultConnectionRef string }
	}
	var dynamic vaultDynamicSecret
	operator := read(t, "vault-secrets-operator.yaml")
	find(t, operator, "VaultConnection", &connection)
	find(t, operator, "VaultAuth", &auth)
	find(t, operator, "VaultDynamicSecret", &dynamic)
	find(t, operator, "Deployment", &restarted)
	ref := restarted.Spec.Template.Spec.Containers[0].Env[0].ValueFrom.SecretKeyRef
	if auth.Spec.VaultConnectionRef != connection.Metadata.Name || dynamic.Spec.VaultAuthRef != auth.Metadata.Name ||
		dynamic.Spec.RolloutRestartTargets[0].Name != restarted.Metadata.Name || ref.Name != dynamic.Spec.Destination.Name {
		t.Error("vault-secrets-operator.yaml: a reference leads nowhere")
	}
	if _, ok := dynamic.Spec.Destination.Transformation.Templates[ref.Key]; !ok {
		t.Errorf("the Secret has no key %s", ref.Key)
	}

	var generator struct{ Metadata struct{ Name string } }
	var external externalSecret
	secrets := read(t, "external-secrets.yaml")
	find(t, secrets, "VaultDynamicSecret", &generator)
	find(t, secrets, "ExternalSecret", &external)
	find(t, secrets, "Deployment", &mounted)
	if external.Spec.DataFrom[0].SourceRef.GeneratorRef.Name != generator.Metadata.Name ||
		external.Spec.Target.Name != mounted.Spec.Template.Spec.Volumes[0].Secret.SecretName {
		t.Error("external-secrets.yaml: a reference leads nowhere")
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(examples, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// find decodes the first object of a kind into a part of its type.
func find(t *testing.T, manifest, kind string, into any) {
	t.Helper()
	for object := range strings.SplitSeq(manifest, "\n---\n") {
		var is struct{ Kind string }
		if err := yaml.Unmarshal([]byte(object), &is); err != nil {
			t.Fatal(err)
		}
		if is.Kind == kind {
			if err := yaml.Unmarshal([]byte(object), into); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("there is no %s", kind)
}
