//go:build acceptance

package acceptance

import (
	"net/http"
	"reflect"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// before is what a refused write must leave as it was.
type before struct {
	config   map[string]any
	token    bearer
	requests int
}

func (m mount) note(t *testing.T, p *provider, cred credential) before {
	t.Helper()
	return before{m.read(t, "config").data, m.token(t, ""), p.Requests(cred.id)}
}

// wantUnchanged compares with the state now; asked says how many requests the
// refused write may have cost.
func (m mount) wantUnchanged(t *testing.T, p *provider, cred credential, old before, asked int) {
	t.Helper()
	now := m.note(t, p, cred)
	if !reflect.DeepEqual(now.config, old.config) {
		t.Errorf("config is now %v, was %v", now.config, old.config)
	}
	if now.token.AccessToken != old.token.AccessToken || now.token.LastVaultRotation != old.token.LastVaultRotation ||
		now.token.RotationPeriod != old.token.RotationPeriod {
		t.Errorf("token is now %+v, was %+v", now.token, old.token)
	}
	if now.requests != old.requests+asked {
		t.Errorf("the write cost %d requests, want %d", now.requests-old.requests, asked)
	}
}

// badFields are config writes that are refused with the name of the field.
var badFields = map[string]struct {
	fields map[string]any
	names  string
}{
	"client_id empty":                 {pairs("client_id", ""), "client_id"},
	"client_secret empty":             {pairs("client_secret", ""), "client_secret"},
	"token_url plain http":            {pairs("token_url", "http://api-auth.autopay.io/oauth/token"), "token_url"},
	"token_url of another scheme":     {pairs("token_url", "ftp://127.0.0.1/token"), "token_url"},
	"token_url relative":              {pairs("token_url", "/oauth/token"), "token_url"},
	"token_url without a host":        {pairs("token_url", "https:///oauth/token"), "token_url"},
	"token_url with userinfo":         {pairs("token_url", "https://user:pass@api-auth.autopay.io/oauth/token"), "token_url"},
	"token_url with a fragment":       {pairs("token_url", "https://api-auth.autopay.io/oauth/token#top"), "token_url"},
	"token_url not a URL":             {pairs("token_url", "https://api auth/%zz"), "token_url"},
	"token_url a name like loopback":  {pairs("token_url", "http://127.0.0.1.example.com/oauth/token"), "token_url"},
	"rotation_period under 5 s":       {pairs("rotation_period", 4), "rotation_period"},
	"rotation_period negative":        {pairs("rotation_period", -60), "rotation_period"},
	"rotation_period words":           {pairs("rotation_period", "soon"), "rotation_period"},
	"rotation_period an array":        {pairs("rotation_period", []int{5}), "rotation_period"},
	"request_timeout 0":               {pairs("request_timeout", 0), "request_timeout"},
	"request_timeout over a minute":   {pairs("request_timeout", "61s"), "request_timeout"},
	"request_timeout words":           {pairs("request_timeout", "long"), "request_timeout"},
	"ca_cert not PEM":                 {pairs("ca_cert", "MIIB"), "ca_cert"},
	"ca_cert PEM of nothing":          {pairs("ca_cert", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"), "ca_cert"},
	"token_request_limit negative":    {pairs("token_request_limit", -1), "token_request_limit"},
	"token_request_limit words":       {pairs("token_request_limit", "many"), "token_request_limit"},
	"token_request_limit a fraction":  {pairs("token_request_limit", 1.5), "token_request_limit"},
	"verify words":                    {pairs("verify", "perhaps"), "verify"},
	"token_url without client_secret": {pairs("token_url", "https://127.0.0.1:1/token"), "client_secret"},
	"token_url back to default":       {pairs("token_url", ""), "client_secret"},
	"a good field beside a bad one":   {pairs("rotation_period", 7200, "request_timeout", 0), "request_timeout"},
	"a bad field with verify=false":   {pairs("token_url", "http://example.com/", "client_secret", canarySecret, "verify", false), "token_url"},
}

// TestBadFields changes a working credential to each of badFields, and creates
// one with it: a 400 that names the field, and nothing changes or comes to be.
func TestBadFields(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)

	for name, test := range badFields {
		t.Run(name, func(t *testing.T) {
			a := m.write(t, "config", test.fields)
			if a.status != http.StatusBadRequest || !strings.Contains(a.errors(), test.names) {
				t.Errorf("update: %v, want 400 that names %s", a, test.names)
			}
			m.wantUnchanged(t, p, cred, old, 0)

			if test.names == "client_secret" && !reflect.DeepEqual(test.fields, pairs("client_secret", "")) {
				return // a creation brings client_secret anyway
			}
			fields := cred.config()
			for key, value := range test.fields {
				fields[key] = value
			}
			a = m.write(t, "config/new", fields)
			if a.status != http.StatusBadRequest || !strings.Contains(a.errors(), test.names) {
				t.Errorf("create: %v, want 400 that names %s", a, test.names)
			}
			if a := m.read(t, "config/new"); a.status != http.StatusNotFound {
				t.Errorf("a refused creation left %v", a)
			}
		})
	}
	for _, missing := range []string{"client_id", "client_secret"} {
		fields := cred.config()
		delete(fields, missing)
		if a := m.write(t, "config/new", fields); a.status != http.StatusBadRequest || !strings.Contains(a.errors(), missing) {
			t.Errorf("create without %s: %v", missing, a)
		}
	}
	p.asked(t, cred, 1)
}

// TestRefusedWrites are those that Autopay does not prove.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)

	// Autopay refuses: the operator's fault, in Autopay's words.
	a := m.write(t, "config", pairs("client_secret", newSecret()))
	if a.status != http.StatusBadRequest || !strings.Contains(a.errors(), "access_denied") || !strings.Contains(a.errors(), "Unauthorized") {
		t.Errorf("a wrong secret: %v, want 400 with Autopay's words", a)
	}
	m.wantUnchanged(t, p, cred, old, 1)
	old.requests++

	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultEchoSecret})
	if a := m.write(t, "config", pairs("client_secret", newSecret())); a.status != http.StatusBadRequest {
		t.Errorf("a refusal that echoes the secret: %v, want 400", a)
	}
	m.wantUnchanged(t, p, cred, old, 1)
	old.requests++

	// Autopay can't tell: 503, and the way out.
	for name, fault := range map[string]autopaysim.Fault{
		"503":       down,
		"malformed": {Kind: autopaysim.FaultMalformed},
		"cut":       {Kind: autopaysim.FaultClose},
	} {
		p.SetFault(fault)
		a := m.write(t, "config", pairs("client_secret", newSecret()))
		if a.status != http.StatusServiceUnavailable || !strings.Contains(a.errors(), "verify=false") {
			t.Errorf("%s: %v, want 503 that mentions verify=false", name, a)
		}
		m.wantUnchanged(t, p, cred, old, 1)
		old.requests++
	}

	// The same for a creation, which leaves nothing.
	if a := m.write(t, "config/new", cred.config()); a.status != http.StatusServiceUnavailable {
		t.Errorf("creation with Autopay down: %v, want 503", a)
	}
	p.SetFault(autopaysim.Fault{})
	if a := m.write(t, "config/new", cred.config("client_secret", newSecret())); a.status != http.StatusBadRequest {
		t.Errorf("creation with a wrong secret: %v, want 400", a)
	}
	if a := m.read(t, "config/new"); a.status != http.StatusNotFound {
		t.Errorf("a refused creation left %v", a)
	}
	if a := m.read(t, "token/new"); a.status != http.StatusBadRequest {
		t.Errorf("token of a refused creation: %v, want 400", a)
	}
}

// TestUnknownField is a typo: what is right is done, and a warning names it.
func TestUnknownField(t *testing.T) {
	t.Parallel()
	m, _, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	a := m.write(t, "config", pairs("rotation_perod", 3600))
	if a.status != http.StatusOK || !strings.Contains(a.warnings(), "rotation_perod") {
		t.Errorf("%v, want a warning that names rotation_perod", a)
	}
}

// TestTokenURLNeedsSecret gives a host of an attacker's to a working
// credential: it hears nothing.
func TestTokenURLNeedsSecret(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)
	attacker := startProvider(t)

	for _, extra := range []map[string]any{{}, {"verify": false}, {"client_secret": ""}} {
		extra["token_url"] = attacker.tokenURL()
		if a := m.write(t, "config", extra); a.status != http.StatusBadRequest || !strings.Contains(a.errors(), "client_secret") {
			t.Errorf("%v: %v, want 400", extra, a)
		}
	}
	m.wantUnchanged(t, p, cred, old, 0)
	if n := attacker.Requests(""); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
	if a := m.write(t, "config", pairs("ca_cert", otherCert(t))); a.status != http.StatusBadRequest || !strings.Contains(a.errors(), "client_secret") {
		t.Errorf("ca_cert: %v, want 400", a)
	}
	m.wantUnchanged(t, p, cred, old, 0)
	// The same URL again is no change.
	m.mustWrite(t, "config", pairs("token_url", cred.tokenURL))
	m.wantUnchanged(t, p, cred, old, 0)
}
