//go:build acceptance

package acceptance

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// provider is a stand-in for Autopay at an address of its own.
type provider struct {
	*autopaysim.Server
	web *httptest.Server
}

// usualBan is how many tokens one client gets before it is banned: more than
// almost any test here should need.
const usualBan = 10

func startProvider(t *testing.T) *provider {
	t.Helper()
	return startProviderBanning(t, usualBan)
}

// startProviderBanning bans a client who asks for more tokens than so many.
func startProviderBanning(t *testing.T, after int) *provider {
	t.Helper()
	return serveProvider(t, (*httptest.Server).Start, after)
}

func startTLSProvider(t *testing.T) *provider {
	t.Helper()
	return serveProvider(t, (*httptest.Server).StartTLS, usualBan)
}

func serveProvider(t *testing.T, start func(*httptest.Server), banAfter int) *provider {
	t.Helper()
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{}, BanAfter: banAfter})
	web := httptest.NewUnstartedServer(sim)
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are wanted
	start(web)
	t.Cleanup(func() {
		sim.Close() // first: it frees what hangs
		web.Close()
		if sim.Banned("") {
			t.Error("Autopay would have banned a client: too many tokens")
		}
	})
	return &provider{Server: sim, web: web}
}

func (p *provider) tokenURL() string { return p.web.URL + autopaysim.TokenPath }

// caCert is the certificate of a TLS stand-in, which signs itself.
func (p *provider) caCert() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.web.Certificate().Raw}))
}

// owner asks the protected resource whose token it is; "" for one it refuses.
func (p *provider) owner(t *testing.T, token string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.web.URL+autopaysim.ResourcePath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := p.web.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var who struct {
		ClientID string `json:"client_id"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&who); err != nil {
		t.Fatal(err)
	}
	return who.ClientID
}

// accepts reports whether the protected resource answers to a token.
func (p *provider) accepts(t *testing.T, token string) bool {
	t.Helper()
	return p.owner(t, token) != ""
}

// otherCert is the certificate of an authority that signed nothing here.
func otherCert(t *testing.T) string {
	t.Helper()
	_, ca, err := autopaysim.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	return string(ca)
}

// credential is what Autopay gives an application.
type credential struct {
	id, secret string
	tokenURL   string
}

// newCredential registers a client with the stand-in.
func (p *provider) newCredential() credential {
	c := credential{id: "client-" + random(6), secret: newSecret(), tokenURL: p.tokenURL()}
	p.SetClient(c.id, c.secret)
	return c
}

// config is the body of a config write, with more fields added in pairs of
// name and value.
func (c credential) config(more ...any) map[string]any {
	fields := map[string]any{"client_id": c.id, "client_secret": c.secret, "token_url": c.tokenURL}
	maps.Copy(fields, pairs(more...))
	return fields
}

// unproved is the same, stored without asking the provider.
func (c credential) unproved(more ...any) map[string]any {
	return c.config(append(more, "verify", false)...)
}

func pairs(items ...any) map[string]any {
	fields := map[string]any{}
	for i := 0; i < len(items); i += 2 {
		fields[items[i].(string)] = items[i+1]
	}
	return fields
}

// asked fails the test unless the stand-in got exactly n requests for tokens
// of a credential.
func (p *provider) asked(t *testing.T, c credential, n int) {
	t.Helper()
	if got := p.Requests(c.id); got != n {
		t.Errorf("Autopay was asked %d times for a token, want %d", got, n)
	}
}

var rfc3339 = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

// setup is a mount on the shared server, a stand-in and a client there.
func setup(t *testing.T) (mount, *provider, credential) {
	t.Helper()
	p := startProvider(t)
	return enable(t, sharedVault(t)), p, p.newCredential()
}

// down makes the stand-in answer 503 until fault is set again.
var down = autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: http.StatusServiceUnavailable}

// timestamp parses a time as the API must render it.
func timestamp(t *testing.T, text any) time.Time {
	t.Helper()
	s, _ := text.(string)
	at, err := time.Parse(time.RFC3339, s)
	if err != nil || at.Location() != time.UTC {
		t.Fatalf("%v is not RFC 3339 in UTC (%v)", text, err)
	}
	return at
}
