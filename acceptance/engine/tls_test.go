//go:build acceptance

package engine

import (
	"net/http"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestTLS reaches a stand-in whose certificate only ca_cert vouches for.
func TestTLS(t *testing.T) {
	t.Parallel()
	p := harness.StartAutopayTLS(t)
	m := harness.Enable(t, harness.SharedVault(t))
	cred := p.NewCredential()

	// The system's roots do not know it.
	a := m.Write(t, "config", cred.Config())
	if a.Status != http.StatusServiceUnavailable || !strings.Contains(a.Errors(), "certificate") || !strings.Contains(a.Errors(), "verify=false") {
		t.Errorf("write without ca_cert: %v, want 503", a)
	}
	m.MustWrite(t, "config/unproved", cred.Unverified())
	if a := wantError(t, m, "token/unproved", http.StatusServiceUnavailable); !strings.Contains(a.Errors(), "certificate") {
		t.Errorf("%q does not tell of the certificate", a.Errors())
	}

	// Another authority, which is then the only one trusted.
	if a := m.Write(t, "config", cred.Config("ca_cert", harness.OtherCert(t))); a.Status != http.StatusServiceUnavailable {
		t.Errorf("write with a foreign ca_cert: %v, want 503", a)
	}
	if n := p.Requests(""); n != 0 {
		t.Errorf("%d requests went to a host that is not trusted", n)
	}

	m.MustWrite(t, "config", cred.Config("ca_cert", p.CACert()))
	if token := m.Token(t, "").AccessToken; !p.Accepts(t, token) {
		t.Error("the token is not accepted")
	}
	if got := m.Read(t, "config").Data["ca_cert"]; strings.TrimSpace(got.(string)) != strings.TrimSpace(p.CACert()) {
		t.Errorf("ca_cert reads %v", got)
	}
	m.MustWrite(t, "config/several", cred.Config("ca_cert", harness.OtherCert(t)+p.CACert()))
	p.WantRequests(t, cred, 2)

	// A change of it must bring the secret; with it, the default is back.
	old := m.Snapshot(t, p, cred)
	if a := m.Write(t, "config", harness.Fields("ca_cert", "")); a.Status != http.StatusBadRequest {
		t.Errorf("ca_cert removed without client_secret: %v, want 400", a)
	}
	m.WantUnchanged(t, p, cred, old, 0)
	m.MustWrite(t, "config", harness.Fields("ca_cert", "", "client_secret", cred.Secret, "verify", false))
	wantError(t, m, "token", http.StatusServiceUnavailable)
}
