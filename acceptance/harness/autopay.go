//go:build acceptance

package harness

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// Autopay is a simulator of Autopay at an address of its own.
type Autopay struct {
	*autopaysim.Server
	web *httptest.Server
}

// usualBan is how many tokens a client gets before it is banned. Almost no test
// should need more.
const usualBan = 10

// StartAutopay starts a simulator that bans a client for its eleventh token. When
// the test ends it stops, and the test fails if a client was banned.
func StartAutopay(tb testing.TB) *Autopay {
	tb.Helper()
	return StartAutopayBanning(tb, usualBan)
}

// StartAutopayBanning is StartAutopay with another number of tokens that a client
// may have; 0 is unlimited.
func StartAutopayBanning(tb testing.TB, after int) *Autopay {
	tb.Helper()
	return serveAutopay(tb, (*httptest.Server).Start, after)
}

// StartAutopayTLS is StartAutopay at an https address, with a certificate that
// only CACert vouches for.
func StartAutopayTLS(tb testing.TB) *Autopay {
	tb.Helper()
	return serveAutopay(tb, (*httptest.Server).StartTLS, usualBan)
}

func serveAutopay(tb testing.TB, start func(*httptest.Server), banAfter int) *Autopay {
	tb.Helper()
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{}, BanAfter: banAfter})
	web := httptest.NewUnstartedServer(sim)
	web.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are wanted
	start(web)
	tb.Cleanup(func() {
		sim.Close() // first: it frees what hangs
		web.Close()
		if sim.Banned("") {
			tb.Error("Autopay would have banned a client: too many tokens")
		}
	})
	return &Autopay{Server: sim, web: web}
}

// TokenURL returns the URL of the token endpoint.
func (p *Autopay) TokenURL() string { return p.web.URL + autopaysim.TokenPath }

// ResourceURL returns the URL of the API that tokens are for. It answers GET.
func (p *Autopay) ResourceURL() string { return p.web.URL + autopaysim.ResourcePath }

// CACert returns the self-signed certificate of a TLS simulator, in PEM.
func (p *Autopay) CACert() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.web.Certificate().Raw}))
}

// Owner asks the API whose token it is, and returns the client ID. It is empty
// when the API refuses the token.
func (p *Autopay) Owner(tb testing.TB, token string) string {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, p.ResourceURL(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := p.web.Client().Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	var who struct {
		ClientID string `json:"client_id"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&who); err != nil {
		tb.Fatal(err)
	}
	return who.ClientID
}

// Accepts reports whether the API accepts a token.
func (p *Autopay) Accepts(tb testing.TB, token string) bool {
	tb.Helper()
	return p.Owner(tb, token) != ""
}

// OtherCert returns the certificate of an authority that signed nothing else, in
// PEM.
func OtherCert(tb testing.TB) string {
	tb.Helper()
	_, ca, err := autopaysim.SelfSigned()
	if err != nil {
		tb.Fatal(err)
	}
	return string(ca)
}

// Credential is what Autopay gives an application: a client of the simulator, and
// where it gets its tokens.
type Credential struct {
	ID, Secret string
	TokenURL   string
}

// NewCredential registers a new client with the simulator.
func (p *Autopay) NewCredential() Credential {
	c := Credential{ID: "client-" + Random(6), Secret: NewSecret(), TokenURL: p.TokenURL()}
	p.SetClient(c.ID, c.Secret)
	return c
}

// Config returns the fields of a config write. More are added, or replaced, in
// pairs of name and value.
func (c Credential) Config(more ...any) map[string]any {
	fields := map[string]any{"client_id": c.ID, "client_secret": c.Secret, "token_url": c.TokenURL}
	maps.Copy(fields, Fields(more...))
	return fields
}

// Unverified is Config with verify=false, so that Autopay is not asked.
func (c Credential) Unverified(more ...any) map[string]any {
	return c.Config(append(more, "verify", false)...)
}

// Fields returns the fields of a write, given in pairs of name and value.
func Fields(items ...any) map[string]any {
	fields := map[string]any{}
	for i := 0; i < len(items); i += 2 {
		fields[items[i].(string)] = items[i+1]
	}
	return fields
}

// WantRequests fails the test unless the simulator got exactly n requests for
// tokens of a credential.
func (p *Autopay) WantRequests(tb testing.TB, c Credential, n int) {
	tb.Helper()
	if got := p.Requests(c.ID); got != n {
		tb.Errorf("Autopay was asked %d times for a token, want %d", got, n)
	}
}

// Down is an outage of Autopay: it answers 503.
var Down = Answers(http.StatusServiceUnavailable)

// Answers is a fault of Autopay that answers each request with a status code.
func Answers(code int) autopaysim.Fault {
	return autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: code}
}
