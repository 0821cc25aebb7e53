// Package manifests holds examples/kubernetes to the types that its objects
// are of. It is a module of its own, so that its dependencies meet nobody
// else's. There is no cluster: nothing here is applied.
package manifests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/template"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const examples = "../../../examples/kubernetes"

// check returns what is wrong with one object: fields that its type does not
// have, values that it does not allow.
func check(object []byte) error {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(object, &kind); err != nil {
		return err
	}
	switch what := kind.APIVersion + " " + kind.Kind; what {
	case "v1 ServiceAccount":
		return decode(object, &corev1.ServiceAccount{})
	case "apps/v1 Deployment":
		var deployment appsv1.Deployment
		if err := decode(object, &deployment); err != nil {
			return err
		}
		return checkAnnotations(deployment.Spec.Template.Annotations)
	case "secrets.hashicorp.com/v1beta1 VaultConnection":
		return decode(object, &vaultConnection{})
	case "secrets.hashicorp.com/v1beta1 VaultAuth":
		return decode(object, &vaultAuth{})
	case "secrets.hashicorp.com/v1beta1 VaultDynamicSecret":
		return decode(object, &vaultDynamicSecret{})
	case "generators.external-secrets.io/v1alpha1 VaultDynamicSecret":
		return checkCRD("generators.external-secrets.io_vaultdynamicsecrets.yaml", "v1alpha1", object)
	case "external-secrets.io/v1 ExternalSecret":
		return checkCRD("external-secrets.io_externalsecrets.yaml", "v1", object)
	default:
		return fmt.Errorf("nothing here knows %s", what)
	}
}

// decode is as strict as an API server that validates fields: a name in another
// case is an unknown field, too.
func decode(object []byte, into any) error {
	text, err := yaml.YAMLToJSONStrict(object)
	if err != nil {
		return err
	}
	unknown, err := json.UnmarshalStrict(text, into)
	return errors.Join(append(unknown, err)...)
}

func TestExampleKubernetes(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(examples, "*.yaml"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%v, %v, want 3 files", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			for _, object := range objects(t, filepath.Base(file)) {
				if err := check(object); err != nil {
					t.Errorf("%v, in\n%s", err, object)
				}
			}
		})
	}
}

// TestMistakesAreSeen plants mistakes in the examples.
func TestMistakesAreSeen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, file, old, mistake string }{
		{"service account", "agent-injector.yaml", "kind: ServiceAccount\nmetadata", "kind: ServiceAccount\nmetdata"},
		{"deployment", "agent-injector.yaml", "serviceAccountName", "serviceAccountname"},
		{"audience", "agent-injector.yaml", "audience:", "audiences:"},
		{"annotation", "agent-injector.yaml", "agent-inject-perms-", "agent-inject-perm-"},
		{"annotation without a suffix", "agent-injector.yaml", "com/role:", "com/role-name:"},
		{"template of another secret", "agent-injector.yaml", "template-autopay-token", "template-autopay"},
		{"connection", "vault-secrets-operator.yaml", "caCertSecretRef", "caCertSecret"},
		{"auth", "vault-secrets-operator.yaml", "vaultConnectionRef", "vaultConnection"},
		{"static creds", "vault-secrets-operator.yaml", "allowStaticCreds", "allowStaticCred"},
		{"type", "vault-secrets-operator.yaml", "create: true", `create: "true"`},
		{"transformation", "vault-secrets-operator.yaml", "excludeRaw", "exclude_raw"},
		{"kind to restart", "vault-secrets-operator.yaml", "kind: Deployment\n      name", "kind: Deploy\n      name"},
		{"generator", "external-secrets.yaml", "method: GET", "methd: GET"},
		{"provider", "external-secrets.yaml", "mountPath: kubernetes", "mount: kubernetes"},
		{"enumeration", "external-secrets.yaml", "type: Secret", "type: Sekret"},
		{"external secret", "external-secrets.yaml", "refreshInterval", "refreshinterval"},
		{"missing field", "external-secrets.yaml", "  path: autopay/token\n", ""},
		{"generator reference", "external-secrets.yaml", "generatorRef", "generator"},
		{"API version", "external-secrets.yaml", "apiVersion: external-secrets.io/v1\n", "apiVersion: external-secrets.io/v1beta1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := read(t, test.file)
			if strings.Count(text, test.old) == 0 {
				t.Fatalf("%s does not hold %q", test.file, test.old)
			}
			for _, object := range split(strings.Replace(text, test.old, test.mistake, 1)) {
				if err := check(object); err != nil {
					return
				}
			}
			t.Errorf("%q is taken for %q", test.mistake, test.old)
		})
	}
}

// The answer that Vault gives, as the templates see it.
var answer = map[string]any{
	"access_token": "the-token", "token_type": "Bearer", "scope": "customer_club", "rotation_period": 64800,
	"ttl": 16320, "expire_time": "2026-01-05T18:00:00Z", "last_vault_rotation": "2026-01-04T18:00:00Z",
}

// TestOnlyTheTokenIsRendered runs the templates of the three. What else they
// rendered would change, or not be needed.
func TestOnlyTheTokenIsRendered(t *testing.T) {
	t.Parallel()

	var injected appsv1.Deployment
	find(t, "agent-injector.yaml", "Deployment", &injected)
	text := injected.Spec.Template.Annotations["vault.hashicorp.com/agent-inject-template-autopay-token"]
	path := injected.Spec.Template.Annotations["vault.hashicorp.com/agent-inject-secret-autopay-token"]
	secret := func(of string) (map[string]any, error) {
		if of != path {
			return nil, fmt.Errorf("the template reads %s, the annotation says %s", of, path)
		}
		return map[string]any{"Data": answer}, nil
	}
	rendersToken(t, text, template.FuncMap{"secret": secret}, nil)

	var dynamic vaultDynamicSecret
	find(t, "vault-secrets-operator.yaml", "VaultDynamicSecret", &dynamic)
	change := dynamic.Spec.Destination.Transformation
	if len(change.Templates) != 1 || !change.ExcludeRaw || len(change.Excludes) != 1 {
		t.Fatalf("%+v: more than one field", change)
	}
	for field := range answer {
		if !regexp.MustCompile(change.Excludes[0]).MatchString(field) {
			t.Errorf("the Secret holds %s, too", field)
		}
	}
	get := func(from map[string]any, key string) any { return from[key] } // sprig's
	rendersToken(t, change.Templates["access_token"].Text, template.FuncMap{"get": get}, map[string]any{"Secrets": answer})

	var external struct {
		Spec struct {
			Target struct {
				Template struct{ Data map[string]string }
			}
		}
	}
	find(t, "external-secrets.yaml", "ExternalSecret", &external)
	if data := external.Spec.Target.Template.Data; len(data) != 1 {
		t.Errorf("%v: more than one field", data)
	}
	rendersToken(t, external.Spec.Target.Template.Data["access_token"], nil, answer)
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
	for _, file := range []string{"agent-injector.yaml", "vault-secrets-operator.yaml", "external-secrets.yaml"} {
		var account corev1.ServiceAccount
		var deployment appsv1.Deployment
		find(t, file, "ServiceAccount", &account)
		find(t, file, "Deployment", &deployment)
		if deployment.Spec.Template.Spec.ServiceAccountName != account.Name {
			t.Errorf("%s: the pods do not run as %s", file, account.Name)
		}
		for key, value := range deployment.Spec.Selector.MatchLabels {
			if deployment.Spec.Template.Labels[key] != value {
				t.Errorf("%s: the selector does not find the pods", file)
			}
		}
	}

	var injected, restarted, mounted appsv1.Deployment
	find(t, "agent-injector.yaml", "Deployment", &injected)
	pod := injected.Spec.Template
	if login := pod.Annotations["vault.hashicorp.com/agent-service-account-token-volume-name"]; pod.Spec.Volumes[0].Name != login {
		t.Errorf("there is no volume %s", login)
	}

	var connection vaultConnection
	var auth vaultAuth
	var dynamic vaultDynamicSecret
	find(t, "vault-secrets-operator.yaml", "VaultConnection", &connection)
	find(t, "vault-secrets-operator.yaml", "VaultAuth", &auth)
	find(t, "vault-secrets-operator.yaml", "VaultDynamicSecret", &dynamic)
	find(t, "vault-secrets-operator.yaml", "Deployment", &restarted)
	ref := restarted.Spec.Template.Spec.Containers[0].Env[0].ValueFrom.SecretKeyRef
	if auth.Spec.VaultConnectionRef != connection.Metadata.Name || dynamic.Spec.VaultAuthRef != auth.Metadata.Name ||
		dynamic.Spec.RolloutRestartTargets[0].Name != restarted.Name || ref.Name != dynamic.Spec.Destination.Name {
		t.Error("vault-secrets-operator.yaml: a reference leads nowhere")
	}
	if _, ok := dynamic.Spec.Destination.Transformation.Templates[ref.Key]; !ok {
		t.Errorf("the Secret has no key %s", ref.Key)
	}

	var generator struct{ Metadata metav1.ObjectMeta }
	var external struct {
		Spec struct {
			Target   struct{ Name string }
			DataFrom []struct {
				SourceRef struct {
					GeneratorRef struct{ APIVersion, Kind, Name string }
				}
			}
		}
	}
	find(t, "external-secrets.yaml", "VaultDynamicSecret", &generator)
	find(t, "external-secrets.yaml", "ExternalSecret", &external)
	find(t, "external-secrets.yaml", "Deployment", &mounted)
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

func split(text string) [][]byte {
	var all [][]byte
	for object := range strings.SplitSeq(text, "\n---\n") {
		all = append(all, []byte(object))
	}
	return all
}

func objects(t *testing.T, file string) [][]byte {
	t.Helper()
	return split(read(t, file))
}

// find reads the first object of a kind.
func find(t *testing.T, file, kind string, into any) {
	t.Helper()
	for _, object := range objects(t, file) {
		var is metav1.TypeMeta
		if err := yaml.Unmarshal(object, &is); err != nil {
			t.Fatal(err)
		}
		if is.Kind == kind {
			if err := yaml.Unmarshal(object, into); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%s has no %s", file, kind)
}
