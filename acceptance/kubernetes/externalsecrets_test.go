//go:build acceptance

package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// secretWithin is how long the operator may take to start and to write a Secret
// that it refreshes each second; 3 s is usual.
const secretWithin = time.Minute

// runsExternalSecrets runs the operator on its example and replaces the token
// once. The Secret must hold the current token and nothing else.
func (c *cluster) runsExternalSecrets(t *testing.T, m harness.Mount, replace func()) {
	t.Helper()
	resources := filepath.Join(harness.Tool(t, "external-secrets-source"), "config", "crds", "bases")
	c.must(t, "", "apply", "--server-side", "--force-conflicts", "--kustomize="+resources)
	c.must(t, "", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

	example := string(harness.ReadFile(t, examples+"/external-secrets.yaml"))
	for old, now := range map[string]string{
		"https://vault.example.com:8200": m.Addr,
		"refreshInterval: 5m":            "refreshInterval: 1s",
	} {
		if !strings.Contains(example, old) {
			t.Fatalf("the example does not hold %q", old)
		}
		example = strings.ReplaceAll(example, old, now)
	}
	ca := c.write(t, "vault-ca.crt", []byte(harness.OtherCert(t))) // this Vault has no certificate
	c.must(t, "", "create", "secret", "generic", "vault-ca", "--namespace=shop", "--from-file=ca.crt="+ca)
	c.must(t, example, "apply", "--filename=-")
	c.start(t, "external-secrets", "--metrics-addr=127.0.0.1:0", "--namespace=shop",
		"--enable-cluster-store-reconciler=false", "--enable-cluster-external-secret-reconciler=false",
		"--enable-cluster-push-secret-reconciler=false", "--enable-push-secret-reconciler=false")

	c.wantSecret(t, m.Token(t, "").AccessToken)
	replace()
	start := time.Now()
	c.wantSecret(t, m.Token(t, "").AccessToken)
	t.Logf("FIGURE: External Secrets with refreshInterval 1s: a new token is in the Secret after %v",
		time.Since(start).Round(100*time.Millisecond))
}

func (c *cluster) wantSecret(t *testing.T, token string) {
	t.Helper()
	want := map[string]string{"access_token": token}
	err := harness.Poll(secretWithin, func() error {
		text, err := c.kubectl(t, "", "get", "secret", "autopay-token", "--namespace=shop", "--output=json")
		if err != nil {
			return err
		}
		var secret struct{ Data map[string][]byte }
		if err := json.Unmarshal([]byte(text), &secret); err != nil {
			return err
		}
		got := map[string]string{}
		for field, value := range secret.Data {
			got[field] = string(value)
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("the Secret has %d fields, or another token", len(got))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
