//go:build acceptance

package kubernetes

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// define tells the API server of the operators' resources.
func (c *cluster) define(t *testing.T) {
	t.Helper()
	resources := filepath.Join(harness.Tool(t, "external-secrets-1.3.2-source"), "config", "crds", "bases")
	// By the server: an annotation, which kubectl makes otherwise, has no room for some of them.
	c.must(t, "", "apply", "--server-side",
		"--filename="+filepath.Join(resources, "generators.external-secrets.io_vaultdynamicsecrets.yaml"),
		"--filename="+filepath.Join(resources, "external-secrets.io_externalsecrets.yaml"),
		"--filename=testdata")
	c.must(t, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
}

// Where each file says which role it logs in for, as which account, with which
// audience.
var logins = map[string]struct{ object, fields string }{
	"agent-injector.yaml": {
		"deployment/shop",
		`{.spec.template.metadata.annotations.vault\.hashicorp\.com/role} {.spec.template.spec.serviceAccountName} ` +
			`{.spec.template.spec.volumes[0].projected.sources[0].serviceAccountToken.audience}`,
	},
	"vault-secrets-operator.yaml": {
		"vaultauths.secrets.hashicorp.com/shop",
		`{.spec.kubernetes.role} {.spec.kubernetes.serviceAccount} {.spec.kubernetes.audiences[0]}`,
	},
	// The driver asks for a token of the pod's account.
	"csi.yaml": {"secretproviderclass/autopay-token", `{.spec.parameters.roleName} shop {.spec.parameters.audience}`},
	"external-secrets.yaml": {
		"vaultdynamicsecrets.generators.external-secrets.io/autopay-token",
		`{.spec.provider.auth.kubernetes.role} {.spec.provider.auth.kubernetes.serviceAccountRef.name} ` +
			`{.spec.provider.auth.kubernetes.serviceAccountRef.audiences[0]}`,
	},
}

// takesManifests applies each file, and shows that the login it describes reads
// the token and nothing else.
func (c *cluster) takesManifests(t *testing.T, m harness.Mount) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(examples, "*.yaml"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v, want at least 3 files", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c.must(t, "", "apply", "--filename="+file)
			defer c.must(t, "", "delete", "--filename="+file)

			at, ok := logins[filepath.Base(file)]
			if !ok {
				t.Fatal("this test does not know how the file logs in")
			}
			as := strings.Fields(c.must(t, "", "get", at.object, "--namespace=shop", "--output=jsonpath="+at.fields))
			if len(as) != 3 {
				t.Fatalf("%s has %q, want a role, an account and an audience", at.object, as)
			}
			token, err := c.login(t, m.Server, as[0], as[1], "--audience="+as[2])
			if err != nil {
				t.Fatal(err)
			}
			m.As(token).WantCodes(t, map[string]int{
				"GET token":       http.StatusOK,
				"GET token/other": http.StatusForbidden,
				"GET config":      http.StatusForbidden,
				"GET status":      http.StatusForbidden,
				"PUT rotate":      http.StatusForbidden,
			})
		})
	}
}

// refusesMistakes plants mistakes in the examples: the definitions are strict.
func (c *cluster) refusesMistakes(t *testing.T) {
	for _, test := range []struct{ name, file, old, mistake string }{
		{"audience", "agent-injector.yaml", "audience:", "audiences:"},
		{"connection", "vault-secrets-operator.yaml", "caCertSecretRef", "caCertSecret"},
		{"auth", "vault-secrets-operator.yaml", "vaultConnectionRef", "vaultConnection"},
		{"static creds", "vault-secrets-operator.yaml", "allowStaticCreds", "allowStaticCred"},
		{"type", "vault-secrets-operator.yaml", "create: true", `create: "true"`},
		{"transformation", "vault-secrets-operator.yaml", "excludeRaw", "exclude_raw"},
		{"kind to restart", "vault-secrets-operator.yaml", "kind: Deployment\n      name", "kind: Deploy\n      name"},
		{"generator", "external-secrets.yaml", "method: GET", "methd: GET"},
		{"external secret", "external-secrets.yaml", "refreshInterval", "refreshinterval"},
		{"API version", "external-secrets.yaml", "external-secrets.io/v1\n", "external-secrets.io/v1beta1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := string(harness.ReadFile(t, filepath.Join(examples, test.file)))
			wrong := strings.Replace(text, test.old, test.mistake, 1)
			if wrong == text {
				t.Fatalf("%s does not hold %q", test.file, test.old)
			}
			if _, err := c.kubectl(t, wrong, "apply", "--dry-run=server", "--filename=-"); err == nil {
				t.Errorf("%q is taken for %q", test.mistake, test.old)
			}
		})
	}
}
