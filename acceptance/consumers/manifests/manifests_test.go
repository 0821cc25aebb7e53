// Package manifests checks what an API server does not see in
// examples/kubernetes: the injector's annotations, the templates, and the names
// by which the objects of a file refer to each other. It is a module of its own
// because its dependencies must not mix with the engine's. The suite in
// acceptance/kubernetes applies the files to an API server.
package manifests

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"text/template"

	"sigs.k8s.io/yaml"
)

// object is any of the examples' objects, as far as it is tested.
type object struct {
	Kind     string
	Metadata struct{ Name string }
	Spec     struct {
		// Deployment
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
		// VaultAuth and VaultDynamicSecret of Vault Secrets Operator
		VaultConnectionRef, VaultAuthRef string
		Destination                      struct {
			Name           string
			Transformation struct {
				ExcludeRaw bool
				Excludes   []string
				Templates  map[string]struct{ Text string }
			}
		}
		RolloutRestartTargets []struct{ Name string }
		// ExternalSecret
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

// read returns the objects of a file, by kind.
func read(t *testing.T, file string) map[string]object {
	t.Helper()
	text, err := os.ReadFile("../../../examples/kubernetes/" + file)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatal(err)
		}
		objects[o.Kind] = o
	}
	return objects
}

// The response that Vault gives, as the templates see it.
var response = map[string]any{
	"access_token": "the-token", "token_type": "Bearer", "scope": "customer_club", "rotation_period": 64800,
	"ttl": 16320, "expire_time": "2026-01-05T18:00:00Z", "last_vault_rotation": "2026-01-04T18:00:00Z",
}

// rendersToken checks that a template renders the token and nothing else, because that would change between rotations
// or not be needed.
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

// Those of the injector's annotations (hashicorp/vault-k8s, agent-inject/agent/annotations.go) that the example may
// use. The last three end in the name of a secret.
var annotations = regexp.MustCompile(`^vault\.hashicorp\.com/(?:agent-inject|role|agent-run-as-same-user|` +
	`agent-service-account-token-volume-name|template-config-exit-on-retry-failure|` +
	`agent-inject-(?:secret|template|perms)-(.+))$`)

func TestExampleAgentInjector(t *testing.T) {
	t.Parallel()
	pod := read(t, "agent-injector.yaml")["Deployment"].Spec.Template
	all := pod.Metadata.Annotations
	const injector = "vault.hashicorp.com/"
	for key := range all {
		match := annotations.FindStringSubmatch(key)
		if match == nil || match[1] != "" && all[injector+"agent-inject-secret-"+match[1]] == "" {
			t.Errorf("the injector has no annotation %s, or it is for a secret that no other annotation names", key)
		}
	}
	if login := all[injector+"agent-service-account-token-volume-name"]; pod.Spec.Volumes[0].Name != login {
		t.Errorf("there is no volume %q", login)
	}
	secret := func(path string) (map[string]any, error) {
		if want := all[injector+"agent-inject-secret-autopay-token"]; path != want {
			return nil, fmt.Errorf("the template reads %s, the annotation says %s", path, want)
		}
		return map[string]any{"Data": response}, nil
	}
	rendersToken(t, all[injector+"agent-inject-template-autopay-token"], template.FuncMap{"secret": secret}, nil)
}

func TestExampleVaultSecretsOperator(t *testing.T) {
	t.Parallel()
	objects := read(t, "vault-secrets-operator.yaml")
	connection, auth, deployment := objects["VaultConnection"], objects["VaultAuth"], objects["Deployment"]
	dynamic := objects["VaultDynamicSecret"].Spec
	ref := deployment.Spec.Template.Spec.Containers[0].Env[0].ValueFrom.SecretKeyRef
	if auth.Spec.VaultConnectionRef != connection.Metadata.Name || dynamic.VaultAuthRef != auth.Metadata.Name ||
		dynamic.RolloutRestartTargets[0].Name != deployment.Metadata.Name || ref.Name != dynamic.Destination.Name {
		t.Error("a reference leads nowhere")
	}
	change := dynamic.Destination.Transformation
	if len(change.Templates) != 1 || !change.ExcludeRaw || len(change.Excludes) != 1 {
		t.Fatalf("%+v: more than one field", change)
	}
	for field := range response {
		if !regexp.MustCompile(change.Excludes[0]).MatchString(field) {
			t.Errorf("the Secret also holds %s", field)
		}
	}
	get := func(from map[string]any, key string) any { return from[key] } // sprig's
	rendersToken(t, change.Templates[ref.Key].Text, template.FuncMap{"get": get}, map[string]any{"Secrets": response})
}

func TestExampleExternalSecrets(t *testing.T) {
	t.Parallel()
	objects := read(t, "external-secrets.yaml")
	external := objects["ExternalSecret"].Spec
	if external.DataFrom[0].SourceRef.GeneratorRef.Name != objects["VaultDynamicSecret"].Metadata.Name ||
		external.Target.Name != objects["Deployment"].Spec.Template.Spec.Volumes[0].Secret.SecretName {
		t.Error("a reference leads nowhere")
	}
	if data := external.Target.Template.Data; len(data) != 1 {
		t.Errorf("%v: more than one field", data)
	}
	rendersToken(t, external.Target.Template.Data["access_token"], nil, response)
}
