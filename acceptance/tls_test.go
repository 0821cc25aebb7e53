//go:build acceptance

package acceptance

import (
	"net/http"
	"strings"
	"testing"
)

// TestTLS reaches a stand-in whose certificate only ca_cert vouches for.
func TestTLS(t *testing.T) {
	t.Parallel()
	p := startTLSProvider(t)
	m := enable(t, sharedVault(t))
	cred := p.newCredential()

	// The system's roots do not know it.
	a := m.write(t, "config", cred.config())
	if a.status != http.StatusServiceUnavailable || !strings.Contains(a.errors(), "certificate") || !strings.Contains(a.errors(), "verify=false") {
		t.Errorf("write without ca_cert: %v, want 503", a)
	}
	m.mustWrite(t, "config/unproved", cred.unproved())
	if a := m.wantError(t, "token/unproved", http.StatusServiceUnavailable); !strings.Contains(a.errors(), "certificate") {
		t.Errorf("%q does not tell of the certificate", a.errors())
	}

	// Another authority, which is then the only one trusted.
	if a := m.write(t, "config", cred.config("ca_cert", otherCert(t))); a.status != http.StatusServiceUnavailable {
		t.Errorf("write with a foreign ca_cert: %v, want 503", a)
	}
	if n := p.Requests(""); n != 0 {
		t.Errorf("%d requests went to a host that is not trusted", n)
	}

	m.mustWrite(t, "config", cred.config("ca_cert", p.caCert()))
	if token := m.token(t, "").AccessToken; !p.accepts(t, token) {
		t.Error("the token is not accepted")
	}
	if got := m.read(t, "config").data["ca_cert"]; strings.TrimSpace(got.(string)) != strings.TrimSpace(p.caCert()) {
		t.Errorf("ca_cert reads %v", got)
	}
	m.mustWrite(t, "config/several", cred.config("ca_cert", otherCert(t)+p.caCert()))
	p.asked(t, cred, 2)

	// A change of it must bring the secret; with it, the default is back.
	old := m.note(t, p, cred)
	if a := m.write(t, "config", pairs("ca_cert", "")); a.status != http.StatusBadRequest {
		t.Errorf("ca_cert removed without client_secret: %v, want 400", a)
	}
	m.wantUnchanged(t, p, cred, old, 0)
	m.mustWrite(t, "config", pairs("ca_cert", "", "client_secret", cred.secret, "verify", false))
	m.wantError(t, "token", http.StatusServiceUnavailable)
}
