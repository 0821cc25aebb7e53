//go:build acceptance

package acceptance

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// scrape reads the metrics as Prometheus does, with the token as a bearer.
func (m mount) scrape(t *testing.T, token string) (status int, contentType, text string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.addr+"/v1/"+m.at+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: m.witness}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(body)
}

// TestMetrics scrapes over the wire, with a token that may do nothing else. The
// engine's events meet a real event system meanwhile, and leave no trace.
func TestMetrics(t *testing.T) {
	t.Parallel()
	p := startProvider(t)
	m := enable(t, startVault(t))
	cred := p.newCredential()
	m.mustWrite(t, "config/oslo", cred.config())
	m.token(t, "oslo")
	m.token(t, "oslo")
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: http.StatusUnauthorized})
	m.write(t, "config/oslo", map[string]any{"client_secret": newSecret()})

	scraper := m.tokenFor(t, `path "`+m.at+`/metrics" { capabilities = ["read"] }`)
	status, contentType, text := m.scrape(t, scraper)
	if status != http.StatusOK || !strings.HasPrefix(contentType, "text/plain; version=0.0.4") {
		t.Fatalf("%d, %s", status, contentType)
	}
	for _, want := range []string{
		`autopay_build_info{version="` + suite.pluginVersion + `"} 1`,
		`autopay_token_requests_total{name="oslo",outcome="success"} 1`,
		`autopay_token_requests_total{name="oslo",outcome="refused"} 1`,
		`autopay_token_request_duration_seconds_count{name="oslo"} 2`,
		`autopay_token_reads_total{name="oslo",outcome="ok"} 2`,
		`autopay_credential_state{name="oslo",state="ok"} 1`,
		`# TYPE autopay_token_expiry_timestamp_seconds gauge`,
		`go_goroutines `,
		`process_resident_memory_bytes `,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in the metrics", want)
		}
	}
	if a, err := m.call(t.Context(), scraper, http.MethodGet, m.at+"/token/oslo", nil); err != nil || a.status != http.StatusForbidden {
		t.Errorf("the scraper reads a token: %v %v", a, err)
	}
	if status, _, _ := m.scrape(t, m.tokenFor(t, `path "`+m.at+`/token/oslo" { capabilities = ["read"] }`)); status != http.StatusForbidden {
		t.Errorf("an application scrapes: %d", status)
	}

	m.do(t, http.MethodDelete, "config/oslo", nil)
	if _, _, text := m.scrape(t, scraper); strings.Contains(text, "oslo") {
		t.Errorf("series of a deleted credential:\n%s", text)
	}
	log, err := os.ReadFile(m.path("server.log"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "an event was not sent") {
		t.Error("Vault's event system took no event")
	}
}
