//go:build acceptance

package engine

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestBadFields updates and creates credentials with values that are refused, one for each field and kind of check; the
// unit tests have all rules. Each write is a 400 that names the field, and changes nothing. Vault's SDK would quote a
// value of a wrong type in the response and in the server log. The values hold a secret, which the harness looks for.
func TestBadFields(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)

	const number, autopay = harness.CanaryNumber, "api-auth.autopay.io/"
	secret := harness.NewSecret()
	for field, values := range map[string][]any{
		"client_id": {""},
		"client_secret": {
			"", json.Number(number), json.Number("0." + number), json.Number(number + "0000000"), true,
			[]any{json.Number(number)},
			[]any{nil},
			map[string]any{},
			map[string]any{harness.CanaryAudited: true},
		},
		"token_url": {
			secret, "http://" + autopay + secret, "https://u:" + secret + "@" + autopay, "https://" + autopay + "\x7f" + secret,
		},
		"audience":            {secret + "\n"},
		"rotation_period":     {secret, 4},
		"rotation_schedule":   {secret},
		"request_timeout":     {secret, 0},
		"ca_cert":             {secret},
		"token_request_limit": {secret, -1},
		"verify":              {secret},
	} {
		for _, value := range append(values, map[string]any{"x": secret}, []any{secret, secret}) {
			for _, path := range []string{"config", "config/new"} {
				sent := fmt.Sprintf("%s with %s=%v", path, field, value)
				m.Write(t, path, cred.Config(field, value)).Want(t, sent, http.StatusBadRequest, field)
			}
		}
	}
	m.Read(t, "config/new").Want(t, "config of a refused creation", http.StatusNotFound)
	m.WantUnchanged(t, p, cred, old, 0)
}

// TestRefusedWrites updates and creates credentials that Autopay does not confirm.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)
	for _, test := range []struct {
		name  string
		fault autopaysim.Fault
		code  int
		says  string
	}{
		{"a wrong secret", autopaysim.Fault{}, http.StatusBadRequest, "access_denied: Unauthorized"},
		{"a refusal that echoes the secret", autopaysim.Fault{Kind: autopaysim.FaultEchoSecret}, http.StatusBadRequest, ""},
		{"an outage", harness.Down, http.StatusServiceUnavailable, "verify=false"},
		{
			"a malformed answer",
			autopaysim.Fault{Kind: autopaysim.FaultMalformed},
			http.StatusServiceUnavailable,
			"the same write may be tried again at",
		},
	} {
		p.SetFault(test.fault)
		m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret())).Want(t, test.name, test.code, test.says)
		m.WantUnchanged(t, p, cred, old, 1)
		old.Requests++

		wrong := p.NewCredential().Config("client_secret", harness.NewSecret())
		m.Write(t, "config/new", wrong).Want(t, "creation, "+test.name, test.code, test.says)
		m.Read(t, "config/new").Want(t, "config of a refused creation", http.StatusNotFound)
		m.Read(t, "token/new").Want(t, "token of a refused creation", http.StatusBadRequest)
	}
}
