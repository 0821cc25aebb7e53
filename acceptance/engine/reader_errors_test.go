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
		"400": {harness.Answers(400), refused, ""},
		"401": {harness.Answers(401), refused, ""},
		"403": {harness.Answers(403), refused, ""},
		"404": {harness.Answers(404), refused, ""},
		"422": {harness.Answers(422), refused, ""},
		"401 in Autopay's words": {
			autopaysim.Fault{
				Kind: autopaysim.FaultStatus, Status: 401,
				Body: `{"error":"access_denied","error_description":"Unauthorized"}`,
			}, refused, "access_denied: Unauthorized",
		},
		"401 that echoes the secret": {autopaysim.Fault{Kind: autopaysim.FaultEchoSecret}, refused, "access_denied"},
		"401 with a raw page":        {autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401, Body: "<html>" + token}, refused, "401"},

		"408":                     {harness.Answers(408), failed, "408"},
		"429":                     {harness.Answers(429), failed, "429"},
		"500":                     {harness.Answers(500), failed, "500"},
		"502":                     {harness.Answers(502), failed, "502"},
		"503":                     {harness.Answers(503), failed, "503"},
		"500 with a raw page":     {autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 500, Body: "<html>" + token}, failed, "500"},
		"301":                     {autopaysim.Fault{Kind: autopaysim.FaultRedirect, Status: 301}, failed, "301"},
		"307":                     {autopaysim.Fault{Kind: autopaysim.FaultRedirect}, failed, "307"},
		"connection cut":          {autopaysim.Fault{Kind: autopaysim.FaultClose}, failed, ""},
		"answer cut":              {autopaysim.Fault{Kind: autopaysim.FaultCut}, failed, ""},
		"hanging":                 {autopaysim.Fault{Kind: autopaysim.FaultHang}, failed, ""},
		"dripping":                {autopaysim.Fault{Kind: autopaysim.FaultDrip}, failed, ""},
		"nothing":                 {autopaysim.Fault{Kind: autopaysim.FaultEmpty}, failed, ""},
		"JSON that breaks off":    {autopaysim.Fault{Kind: autopaysim.FaultMalformed}, failed, ""},
		"a page":                  {body("<html>" + token), failed, ""},
		"an array":                {body(`["` + token + `"]`), failed, ""},
		"null":                    {body("null"), failed, ""},
		"204":                     {harness.Answers(204), failed, ""},
		"wrong media type":        {autopaysim.Fault{Kind: autopaysim.FaultBadMediaType}, failed, ""},
		"huge":                    {autopaysim.Fault{Kind: autopaysim.FaultHuge}, failed, ""},
		"no access_token":         {autopaysim.Fault{Kind: autopaysim.FaultNoToken}, failed, "access_token"},
		"token with a space":      {body(`{"access_token":"` + token + ` x","token_type":"Bearer","expires_in":60}`), failed, "access_token"},
		"token with a line break": {body(`{"access_token":"` + token + `\r\nX: y","token_type":"Bearer","expires_in":60}`), failed, "access_token"},
		"token beyond ASCII":      {body(`{"access_token":"` + token + `é","token_type":"Bearer","expires_in":60}`), failed, "access_token"},
		"token of another type":   {body(`{"access_token":["` + token + `"],"token_type":"Bearer","expires_in":60}`), failed, "access_token"},
		"token over 64 KiB": {
			body(`{"access_token":"` + token + strings.Repeat("x", 64<<10) + `","token_type":"Bearer","expires_in":60}`), failed, "access_token",
		},
		"token_type mac":        {autopaysim.Fault{Kind: autopaysim.FaultWrongType}, failed, "token_type"},
		"no token_type":         {body(`{"access_token":"` + token + `","expires_in":60}`), failed, "token_type"},
		"no expires_in":         {body(`{"access_token":"` + token + `","token_type":"Bearer"}`), failed, "expires_in"},
		"expires_in 0":          {expiresIn("0"), failed, "expires_in"},
		"expires_in negative":   {expiresIn("-1"), failed, "expires_in"},
		"expires_in a fraction": {expiresIn("3600.5"), failed, "expires_in"},
		"expires_in a string":   {expiresIn(`"3600"`), failed, "expires_in"},
		"expires_in 11 years":   {expiresIn("346896000"), failed, "expires_in"},
		"expires_in 1e300":      {expiresIn("1e300"), failed, "expires_in"},
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
