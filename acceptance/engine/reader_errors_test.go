//go:build acceptance

package engine

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

var rfc3339 = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

// body is a 200 with the given text.
func body(text string) autopaysim.Fault {
	return autopaysim.Fault{Kind: autopaysim.FaultBody, Body: text}
}

func expiresIn(text string) autopaysim.Fault {
	return autopaysim.Fault{Kind: autopaysim.FaultOverride, ExpiresIn: json.RawMessage(text)}
}

// TestReaderErrors has Autopay cause every error that a reader without a live
// token can get. Each error tells when the next attempt is. Readers who ask again
// get the same error at once, without another request to Autopay.
func TestReaderErrors(t *testing.T) {
	t.Parallel()
	const refused, failed = http.StatusBadGateway, http.StatusServiceUnavailable
	token := "sim." + harness.Random(22)
	tests := map[string]struct {
		fault autopaysim.Fault
		want  int
		says  string
	}{
		"401": {harness.Answers(401), refused, "Autopay refused the credential (401)"},
		"404": {harness.Answers(404), refused, "check token_url"},
		"401 in Autopay's words": {
			autopaysim.Fault{
				Kind: autopaysim.FaultStatus, Status: 401,
				Body: `{"error":"access_denied","error_description":"Unauthorized"}`,
			}, refused, "access_denied: Unauthorized",
		},
		"an error in a 200":          {autopaysim.Fault{Kind: autopaysim.FaultOAuthError}, refused, "(200): access_denied: Unauthorized"},
		"401 that echoes the secret": {autopaysim.Fault{Kind: autopaysim.FaultEchoSecret}, refused, "access_denied"},

		"429":                     {harness.Answers(429), failed, "429"},
		"503":                     {harness.Answers(503), failed, "503"},
		"a gateway's 504":         {autopaysim.Fault{Kind: autopaysim.FaultLost}, failed, "text/html, not JSON"},
		"500 with a raw page":     {autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 500, Body: "<html>" + token}, failed, "500"},
		"307":                     {autopaysim.Fault{Kind: autopaysim.FaultRedirect}, failed, "307"},
		"connection cut":          {autopaysim.Fault{Kind: autopaysim.FaultClose}, failed, "broke"},
		"answer cut":              {autopaysim.Fault{Kind: autopaysim.FaultCut}, failed, "broke"},
		"hanging":                 {autopaysim.Fault{Kind: autopaysim.FaultHang}, failed, "request_timeout"},
		"dripping":                {autopaysim.Fault{Kind: autopaysim.FaultDrip}, failed, "request_timeout"},
		"a page":                  {autopaysim.Fault{Kind: autopaysim.FaultHTML}, failed, "text/html, not JSON"},
		"nothing":                 {autopaysim.Fault{Kind: autopaysim.FaultEmpty}, failed, "not a JSON object"},
		"huge":                    {autopaysim.Fault{Kind: autopaysim.FaultHuge}, failed, "1 MiB"},
		"token with a line break": {body(`{"access_token":"` + token + `\r\nX: y","token_type":"Bearer","expires_in":60}`), failed, "access_token"},
		"token_type mac":          {autopaysim.Fault{Kind: autopaysim.FaultWrongType}, failed, "token_type"},
		"expires_in a fraction":   {expiresIn("3600.5"), failed, "expires_in"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, p, cred := harness.Setup(t)
			p.SetFault(test.fault)
			m.MustWrite(t, "config", cred.Unverified("request_timeout", 1))
			wantCachedError(t, m, wantError(t, m, "token", test.want, test.says))
			atMostOneASecond(t, p, cred)
			if state := m.Read(t, "status").Data["state"]; state != "failing" {
				t.Errorf("state %v, want failing", state)
			}
		})
	}
}

// TestOddAnswersAreUsed lets Autopay answer with a token in ways that are not as
// documented. It may have cost one, so it is used.
func TestOddAnswersAreUsed(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]autopaysim.Fault{
		"expires_in in quotes": {Kind: autopaysim.FaultQuoted},
		"expires_in 1e300":     expiresIn("1e300"),
		"media type HTML":      {Kind: autopaysim.FaultBadMediaType},
		"201":                  {Kind: autopaysim.FaultOverride, Status: 201},
		"scope a list":         body(`{"access_token":"` + "sim." + harness.Random(22) + `","scope":["a","b"],"expires_in":3600}`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, p, cred := harness.Setup(t)
			p.SetFault(fault)
			m.MustWrite(t, "config", cred.Config())
			m.Read(t, "token").Want(t, "token", http.StatusOK)
			p.WantRequests(t, cred, 1)
		})
	}
}

// wantError reads a path and checks the code of the answer, and that its error
// says when Autopay is asked next and holds all of the given texts.
func wantError(t *testing.T, m harness.Mount, path string, code int, texts ...string) harness.Answer {
	t.Helper()
	a := m.Read(t, path)
	a.Want(t, path, code, append(texts, "next")...)
	if !rfc3339.MatchString(a.Errors()) {
		t.Errorf("%q does not say when the next attempt is", a.Errors())
	}
	return a
}

// wantCachedError reads the token 20 more times, with the same outcome.
func wantCachedError(t *testing.T, m harness.Mount, first harness.Answer) {
	t.Helper()
	for range 20 {
		m.Read(t, "token").Want(t, "read again", first.Status)
	}
}

// atMostOneASecond checks that requests to Autopay were at least a second apart,
// less 100 ms for the network.
func atMostOneASecond(t *testing.T, p *harness.Autopay, cred harness.Credential) {
	t.Helper()
	var last time.Time
	for _, entry := range p.Log() {
		if entry.ClientID != cred.ID || entry.Path != autopaysim.TokenPath {
			continue
		}
		if gap := entry.Time.Sub(last); gap < 900*time.Millisecond {
			t.Errorf("two requests within %v", gap)
		}
		last = entry.Time
	}
}

// TestReaderErrorsOfConnections does the same with hosts that never answer.
func TestReaderErrorsOfConnections(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	plain := harness.StartAutopay(t)

	for name, url := range map[string]string{
		"connection refused": gone.URL + "/oauth/token",
		"no such host":       "https://autopay.invalid/oauth/token",
		"not TLS":            strings.Replace(plain.TokenURL(), "http:", "https:", 1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _, cred := harness.Setup(t)
			cred.TokenURL = url
			m.MustWrite(t, "config", cred.Unverified("request_timeout", 2))
			wantCachedError(t, m, wantError(t, m, "token", http.StatusServiceUnavailable))
		})
	}
}

// TestNotConfigured reads names that don't exist. The errors say what to do.
func TestNotConfigured(t *testing.T) {
	t.Parallel()
	m := harness.Enable(t, harness.SharedVault(t))
	for path, config := range map[string]string{"token": "config", "token/oslo": "config/oslo"} {
		m.Read(t, path).Want(t, path, http.StatusBadRequest, config, "client_id", "client_secret")
	}
	for _, path := range []string{"config", "config/oslo", "status", "status/oslo"} {
		m.Read(t, path).Want(t, path, http.StatusNotFound)
	}
	for _, path := range []string{"config", "config/oslo"} {
		m.Do(t, http.MethodDelete, path, nil).Want(t, "delete of "+path+", which is not there", http.StatusNoContent)
	}
}

// TestRequestLimit uses up a limit of one request. Neither readers nor operators
// cause another one until the operator raises the limit.
func TestRequestLimit(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config("token_request_limit", 1))
	token := m.Token(t, "").AccessToken

	// A write that needs a request is refused and changes nothing.
	p.SetClient(cred.ID, cred.Secret+"2")
	m.Write(t, "config", harness.Fields("client_secret", cred.Secret+"2")).Want(t, "config write at the limit", http.StatusServiceUnavailable, "limit")
	if m.Token(t, "").AccessToken != token {
		t.Error("a refused write changed the token")
	}

	// A reader without a live token is told to come back in 24 h.
	m.MustWrite(t, "config", harness.Fields("client_secret", cred.Secret+"2", "verify", false))
	a := wantError(t, m, "token", http.StatusServiceUnavailable, "limit of 1 ")
	allowed := harness.Timestamp(t, rfc3339.FindString(a.Errors()))
	if wait := time.Until(allowed); wait < 23*time.Hour || wait > 24*time.Hour+5*time.Second {
		t.Errorf("the next request is allowed in %v, want 24h", wait)
	}
	p.WantRequests(t, cred, 1)

	m.MustWrite(t, "config", harness.Fields("token_request_limit", 2, "verify", false))
	if m.Token(t, "").AccessToken == token {
		t.Error("the token of the old secret is served")
	}
	p.WantRequests(t, cred, 2)
}
