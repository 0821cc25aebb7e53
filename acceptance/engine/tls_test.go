//go:build acceptance

package engine

import (
	"net/http"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestTLS uses a simulator whose certificate is trusted through ca_cert only.
func TestTLS(t *testing.T) {
	t.Parallel()
	p := harness.StartAutopayTLS(t)
	m := harness.Enable(t, harness.SharedVault(t))
	cred := p.NewCredential()

	// The system's roots don't include it.
	m.Write(t, "config", cred.Config()).Want(t, "write without ca_cert", http.StatusServiceUnavailable,
		"certificate is signed by an unknown authority (check ca_cert)")
	m.MustWrite(t, "config/unproved", cred.Unverified())
	wantError(t, m, "token/unproved", http.StatusServiceUnavailable, "certificate")

	// Another authority is then the only one that is trusted.
	foreign := cred.Config("ca_cert", harness.OtherCert(t))
	m.Write(t, "config", foreign).Want(t, "write with a foreign ca_cert", http.StatusServiceUnavailable)
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

	// To change ca_cert, client_secret is required. Set to "" it restores the default.
	old := m.Snapshot(t, p, cred)
	m.Write(t, "config", harness.Fields("ca_cert", "")).Want(t, "ca_cert without client_secret", http.StatusBadRequest)
	m.WantUnchanged(t, p, cred, old, 0)
	m.MustWrite(t, "config", harness.Fields("ca_cert", "", "client_secret", cred.Secret, "verify", false))
	wantError(t, m, "token", http.StatusServiceUnavailable)
}
