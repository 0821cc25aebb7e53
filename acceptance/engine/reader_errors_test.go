//go:build acceptance

package engine

import (
	"net/http"
	"regexp"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

var rfc3339 = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

// TestReaderErrors has Autopay cause an error of each kind for readers without a live token; the unit tests have all
// answers. Each error says when the next attempt is. Readers who ask again get the same error at once, without another
// request to Autopay. An answer that holds a secret or a token is not quoted.
func TestReaderErrors(t *testing.T) {
	t.Parallel()
	const refused, failed = http.StatusBadGateway, http.StatusServiceUnavailable
	body := func(text string) autopaysim.Fault { return autopaysim.Fault{Kind: autopaysim.FaultBody, Body: text} }
	token := "sim." + harness.Random(22)
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		url   string // instead of the simulator's
		want  int
		says  string
	}{
		"the secret echoed": {autopaysim.Fault{Kind: autopaysim.FaultEchoSecret}, "", refused, "(401): access_denied"},
		"429":               {harness.Answers(429), "", failed, "429"},
		"hanging":           {autopaysim.Fault{Kind: autopaysim.FaultHang}, "", failed, "request_timeout"},
		"a page":            {body("<html>" + token), "", failed, "text/html, not JSON"},
		"a line break":      {body(`{"access_token":"` + token + `\r\nX: y","expires_in":60}`), "", failed, "access_token"},
		"no such host":      {autopaysim.Fault{}, "https://autopay.invalid/oauth/token", failed, "does not resolve"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, p, cred := harness.Setup(t)
			p.SetFault(test.fault)
			if test.url != "" {
				cred.TokenURL = test.url
			}
			m.MustWrite(t, "config", cred.Unverified("request_timeout", 1))
			wantError(t, m, "token", test.want, test.says)
			for range 20 {
				m.Read(t, "token").Want(t, "read again", test.want)
			}
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

// TestNotConfigured reads names that don't exist. The errors say what to do.
func TestNotConfigured(t *testing.T) {
	t.Parallel()
	m := harness.Enable(t, harness.SharedVault(t))
	for _, name := range []string{"", "/oslo"} {
		m.Read(t, "token"+name).Want(t, "token", http.StatusBadRequest, "config"+name, "client_id", "client_secret")
		m.Read(t, "config"+name).Want(t, "config", http.StatusNotFound)
		m.Read(t, "status"+name).Want(t, "status", http.StatusNotFound)
		m.Do(t, http.MethodDelete, "config"+name, nil).Want(t, "delete", http.StatusNoContent)
	}
}

// TestRequestLimit uses up a limit of one request. Neither readers nor operators
// cause another one until the operator raises the limit.
func TestRequestLimit(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config("token_request_limit", 1))
	old := m.Snapshot(t, p, cred)

	// A write that needs a request is refused and changes nothing.
	cred.Secret = harness.NewSecret()
	p.SetClient(cred.ID, cred.Secret)
	m.Write(t, "config", cred.Config()).Want(t, "config write at the limit", http.StatusServiceUnavailable, "limit")
	m.WantUnchanged(t, p, cred, old, 0)

	// A reader without a live token is told to come back in 24 h.
	m.MustWrite(t, "config", cred.Unverified())
	a := wantError(t, m, "token", http.StatusServiceUnavailable, "limit of 1 ")
	allowed := harness.Timestamp(t, rfc3339.FindString(a.Errors()))
	if wait := time.Until(allowed); wait < 23*time.Hour || wait > 24*time.Hour+5*time.Second {
		t.Errorf("the next request is allowed in %v, want 24h", wait)
	}
	p.WantRequests(t, cred, 1)

	m.MustWrite(t, "config", harness.Fields("token_request_limit", 2, "verify", false))
	if m.Token(t, "").AccessToken == old.Token.AccessToken {
		t.Error("the token of the old secret is served")
	}
	p.WantRequests(t, cred, 2)
}
