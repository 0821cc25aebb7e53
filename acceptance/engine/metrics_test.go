//go:build acceptance

package engine

import (
	"net/http"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestMetrics scrapes over HTTP with a token that may do nothing else. It also
// checks that Vault's event system accepts the engine's events.
func TestMetrics(t *testing.T) {
	t.Parallel()
	p := harness.StartAutopay(t)
	m := harness.Enable(t, harness.StartVault(t))
	cred := p.NewCredential()
	m.MustWrite(t, "config/oslo", cred.Config())
	m.Token(t, "oslo")
	m.Token(t, "oslo")
	p.SetFault(harness.Answers(http.StatusUnauthorized))
	m.Write(t, "config/oslo", map[string]any{"client_secret": harness.NewSecret()})

	scraper := m.TokenFor(t, `path "`+m.At+`/metrics" { capabilities = ["read"] }`)
	status, contentType, text := m.Scrape(t, scraper)
	if status != http.StatusOK || !strings.HasPrefix(contentType, "text/plain; version=0.0.4") {
		t.Fatalf("%d, %s", status, contentType)
	}
	for _, want := range []string{
		`autopay_build_info{version="` + harness.PluginVersion + `"} 1`,
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
	m.As(scraper).Read(t, "token/oslo").Want(t, "a token for the scraper", http.StatusForbidden)
	app := m.TokenFor(t, `path "`+m.At+`/token/oslo" { capabilities = ["read"] }`)
	if status, _, _ := m.Scrape(t, app); status != http.StatusForbidden {
		t.Errorf("an application scrapes: %d", status)
	}

	m.Do(t, http.MethodDelete, "config/oslo", nil)
	if _, _, text := m.Scrape(t, scraper); strings.Contains(text, "oslo") {
		t.Errorf("series of a deleted credential:\n%s", text)
	}
	log := harness.ReadFile(t, m.Path("server.log"))
	if strings.Contains(string(log), "an event was not sent") && !harness.OpenBao { // which has no events
		t.Error("Vault's event system took no event")
	}
}
