//go:build acceptance

package engine

import (
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// badFields are config writes that are refused with an error that names a field: one
// for each field and kind of check. The unit tests have all values.
var badFields = map[string]struct {
	fields map[string]any
	names  string
}{
	"client_secret empty":             {harness.Fields("client_secret", ""), "client_secret"},
	"token_url plain http":            {harness.Fields("token_url", "http://api-auth.autopay.io/oauth/token"), "token_url"},
	"rotation_period under 5 s":       {harness.Fields("rotation_period", 4), "rotation_period"},
	"rotation_period an array":        {harness.Fields("rotation_period", []int{5}), "rotation_period"},
	"request_timeout 0":               {harness.Fields("request_timeout", 0), "request_timeout"},
	"ca_cert not PEM":                 {harness.Fields("ca_cert", "MIIB"), "ca_cert"},
	"token_request_limit words":       {harness.Fields("token_request_limit", "many"), "token_request_limit"},
	"verify words":                    {harness.Fields("verify", "perhaps"), "verify"},
	"token_url without client_secret": {harness.Fields("token_url", "https://127.0.0.1:1/token"), "client_secret"},
	"a good field beside a bad one":   {harness.Fields("rotation_period", 7200, "request_timeout", 0), "request_timeout"},
	"a bad field with verify=false":   {harness.Fields("token_url", "http://example.com/", "client_secret", harness.CanarySecret, "verify", false), "token_url"},
}

// TestBadFields updates a working credential with each of badFields, and creates
// another one with it. Each write is a 400 that names the field, and changes
// nothing.
func TestBadFields(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)

	for name, test := range badFields {
		t.Run(name, func(t *testing.T) {
			m.Write(t, "config", test.fields).Want(t, "update", http.StatusBadRequest, test.names)
			m.WantUnchanged(t, p, cred, old, 0)

			if test.names == "client_secret" && !reflect.DeepEqual(test.fields, harness.Fields("client_secret", "")) {
				return // a create always has a client_secret
			}
			fields := cred.Config()
			for key, value := range test.fields {
				fields[key] = value
			}
			m.Write(t, "config/new", fields).Want(t, "create", http.StatusBadRequest, test.names)
			m.Read(t, "config/new").Want(t, "config of a refused creation", http.StatusNotFound)
		})
	}
	for _, missing := range []string{"client_id", "client_secret"} {
		fields := cred.Config()
		delete(fields, missing)
		m.Write(t, "config/new", fields).Want(t, "create without "+missing, http.StatusBadRequest, missing)
	}
	p.WantRequests(t, cred, 1)
}

// TestRefusedWrites sends config writes that Autopay does not confirm.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)

	// Autopay refuses the credential: a 400 with Autopay's own words.
	m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret())).Want(t, "a wrong secret", http.StatusBadRequest, "access_denied", "Unauthorized")
	m.WantUnchanged(t, p, cred, old, 1)
	old.Requests++

	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultEchoSecret})
	m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret())).Want(t, "a refusal that echoes the secret", http.StatusBadRequest)
	m.WantUnchanged(t, p, cred, old, 1)
	old.Requests++

	// Autopay gives no usable answer: a 503, which says how to write without it if
	// that would help.
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		says  string
	}{
		"503":       {harness.Down, "verify=false"},
		"malformed": {autopaysim.Fault{Kind: autopaysim.FaultMalformed}, "the same write may be tried again at"},
		"cut":       {autopaysim.Fault{Kind: autopaysim.FaultClose}, "verify=false"},
	} {
		p.SetFault(test.fault)
		m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret())).Want(t, name, http.StatusServiceUnavailable, test.says)
		m.WantUnchanged(t, p, cred, old, 1)
		old.Requests++
	}

	// The same for a new name, which must not exist afterwards.
	m.Write(t, "config/new", cred.Config()).Want(t, "creation with Autopay down", http.StatusServiceUnavailable)
	p.SetFault(autopaysim.Fault{})
	m.Write(t, "config/new", cred.Config("client_secret", harness.NewSecret())).Want(t, "creation with a wrong secret", http.StatusBadRequest)
	m.Read(t, "config/new").Want(t, "config of a refused creation", http.StatusNotFound)
	m.Read(t, "token/new").Want(t, "token of a refused creation", http.StatusBadRequest)
}

// TestUnknownField makes a typo in a field. The write is accepted, and a warning
// names the field.
func TestUnknownField(t *testing.T) {
	t.Parallel()
	m, _, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	a := m.Write(t, "config", harness.Fields("rotation_perod", 3600))
	if a.Status != http.StatusOK || !strings.Contains(a.Warnings(), "rotation_perod") {
		t.Errorf("%v, want a warning that names rotation_perod", a)
	}
}

// TestTokenURLNeedsSecret points a working credential at an attacker's host,
// which must not get a single request.
func TestTokenURLNeedsSecret(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)
	attacker := harness.StartAutopay(t)

	for _, extra := range []map[string]any{{}, {"verify": false}, {"client_secret": ""}} {
		extra["token_url"] = attacker.TokenURL()
		m.Write(t, "config", extra).Want(t, fmt.Sprint(extra), http.StatusBadRequest, "client_secret")
	}
	m.WantUnchanged(t, p, cred, old, 0)
	if n := attacker.Requests(""); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
	m.Write(t, "config", harness.Fields("ca_cert", harness.OtherCert(t))).Want(t, "ca_cert", http.StatusBadRequest, "client_secret")
	m.WantUnchanged(t, p, cred, old, 0)
	// Writing the same URL again changes nothing.
	m.MustWrite(t, "config", harness.Fields("token_url", cred.TokenURL))
	m.WantUnchanged(t, p, cred, old, 0)
}
