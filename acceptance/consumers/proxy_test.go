//go:build acceptance

package consumers

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// proxyRead reads the token through Vault Proxy as an application without a
// Vault token.
func proxyRead(t *testing.T, address string, header ...string) (int, harness.Token) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v1/autopay/token", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range header {
		req.Header.Set(name, "true")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, harness.Token{}
	}
	defer resp.Body.Close()
	var answer struct{ Data harness.Token }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil && resp.StatusCode == http.StatusOK {
		t.Fatal(err)
	}
	return resp.StatusCode, answer.Data
}

// TestExampleProxy runs Vault Proxy with the file of examples/proxy, and with
// its cache switched on, which must not keep an answer that has no lease.
func TestExampleProxy(t *testing.T) {
	t.Parallel()
	m, p := exampleVault(t), harness.StartAutopay(t)
	p.SetLifetime(20 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", 6))
	listen := ""
	for name, more := range map[string]string{"as it is": "", "with a cache": "\ncache {}\n"} {
		role := "proxy-" + harness.Random(2)
		listen = freeAddress(t)
		startVaultProgram(t, "proxy", more+example(t, "proxy/proxy.hcl", "https://vault.example.com:8200", m.Addr,
			"/etc/autopay", appRole(t, m.Server, role, "app.hcl"), "127.0.0.1:8100", listen))
		harness.Eventually(t, time.Minute, "Proxy does not answer", func() bool {
			code, _ := proxyRead(t, listen, "X-Vault-Request")
			return code == http.StatusOK
		})
		audited := func() (n int) {
			for _, read := range m.AuditedReads(t, "autopay/token") {
				if read.Role == role {
					n++
				}
			}
			return n
		}

		// Each read reaches Vault, so that ttl counts down and a new token is there at once.
		before, reads, tokens, last := audited(), 0, map[string]bool{}, harness.Token{}
		counted := false
		harness.Eventually(t, time.Minute, "no rotation shows through Proxy, or ttl stands still", func() bool {
			code, token := proxyRead(t, listen, "X-Vault-Request")
			if code != http.StatusOK || !p.Valid(token.AccessToken) {
				t.Fatalf("%d, a live token: %v", code, p.Valid(token.AccessToken))
			}
			counted = counted || token.AccessToken == last.AccessToken && token.TTL < last.TTL
			tokens[token.AccessToken], last = true, token
			reads++
			return len(tokens) > 2 && counted
		})
		if got := audited() - before; got != reads {
			t.Errorf("Vault got %d of %d reads", got, reads)
		}
		if code, _ := proxyRead(t, listen); code != http.StatusPreconditionFailed {
			t.Errorf("a request without X-Vault-Request: %d, want %d", code, http.StatusPreconditionFailed)
		}
		t.Logf("FIGURE: Vault Proxy %s: %d reads, all of which reached Vault, over %d tokens", name, reads, len(tokens))
	}

	// Without a live token the application gets Vault's error after Proxy's two retries.
	p.SetFault(harness.Down)
	harness.Eventually(t, time.Minute, "the token does not expire", func() bool {
		return m.Read(t, "status").Data["state"] == "failing"
	})
	began := time.Now()
	code, _ := proxyRead(t, listen, "X-Vault-Request")
	took := time.Since(began)
	if code != http.StatusServiceUnavailable || took > 20*time.Second {
		t.Errorf("%d after %v, want 503 within 20 s", code, took)
	}
	t.Logf("FIGURE: Vault Proxy, no live token: the application gets 503 after %v", took.Round(100*time.Millisecond))
}
