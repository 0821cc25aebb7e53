//go:build acceptance

package engine

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// hostile starts a host that reads a request, sends first, and then sends rest
// over and over with a pause in between. It returns the host's URL.
func hostile(t *testing.T, first, rest string, pause time.Duration) string {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 64<<10))
				_, err := io.WriteString(conn, first)
				for err == nil && rest != "" {
					_, err = io.WriteString(conn, rest)
					time.Sleep(pause)
				}
				_, _ = io.Copy(io.Discard, conn) // until the other side closes
			}()
		}
	}()
	return "http://" + ln.Addr().String() + "/oauth/token"
}

// TestHostileHosts sends a credential to hosts that misbehave. That costs one
// attempt, which ends at request_timeout at the latest. The credential can be
// read, written and deleted as before.
func TestHostileHosts(t *testing.T) {
	t.Parallel()
	const (
		ok   = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		slow = 50 * time.Millisecond
		late = "did not answer within the request_timeout of 1s"
	)
	var bomb bytes.Buffer // a good answer when inflated
	w := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(w, strings.Repeat(" ", 512<<10)+`{"access_token":"sim.x","token_type":"Bearer","expires_in":60}`)
	w.Close()

	for name, test := range map[string]struct{ first, rest, says string }{
		"a drip":           {ok + "\r\n", " ", late},
		"headers in drips": {ok + "X: ", "x", late},
		"another protocol": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "", "Autopay answered 101"},
		"many headers":     {ok, strings.Repeat("X-Header: "+strings.Repeat("x", 1000)+"\r\n", 100), "the connection to Autopay broke"},
		"early hints":      {"", strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 100), "the connection to Autopay broke"},
		"a gzip bomb":      {ok + fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", bomb.Len(), bomb.String()), "", "it has a Content-Encoding"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, p, cred := harness.Setup(t)
			m.MustWrite(t, "config", cred.Config())
			old := m.Snapshot(t, p, cred)
			bad := cred.Config("token_url", hostile(t, test.first, test.rest, slow), "request_timeout", 1)

			began := time.Now()
			m.Write(t, "config", bad).Want(t, "write", http.StatusServiceUnavailable, test.says)
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			m.WantUnchanged(t, p, cred, old, 0)

			bad["verify"] = false
			m.MustWrite(t, "config", bad)
			wantError(t, m, "token", http.StatusServiceUnavailable)
			m.Do(t, http.MethodDelete, "config", nil).Want(t, "delete", http.StatusNoContent)
			m.MustWrite(t, "config", cred.Config())
			m.Token(t, "")
		})
	}
}

// TestUpdateOnlyOperator gives an operator a policy to update a credential, and
// nothing else. No write may send the stored secret to a host of the operator's.
func TestUpdateOnlyOperator(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)
	operator := m.TokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = ["update"] }`, m.At))

	var mu sync.Mutex // guards heard
	var heard bytes.Buffer
	own := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = io.Copy(&heard, r.Body)
		fmt.Fprintln(&heard, r.Header, r.URL)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(own.Close)
	write := func(path string, fields map[string]any) int {
		t.Helper()
		a := m.As(operator).Do(t, http.MethodPut, path, fields)
		return a.Status
	}
	for name, fields := range map[string]map[string]any{
		"another URL":              harness.Fields("token_url", own.URL),
		"a path of the same host":  harness.Fields("token_url", cred.TokenURL+"/x"),
		"Autopay's own URL":        harness.Fields("token_url", ""),
		"another CA":               harness.Fields("ca_cert", harness.OtherCert(t)),
		"both":                     harness.Fields("token_url", own.URL, "ca_cert", harness.OtherCert(t)),
		"an empty secret":          harness.Fields("token_url", own.URL, "client_secret", ""),
		"a null secret":            harness.Fields("token_url", own.URL, "client_secret", nil),
		"a secret in a list":       harness.Fields("token_url", own.URL, "client_secret", []string{harness.NewSecret()}),
		"the field in other case":  harness.Fields("token_url", own.URL, "Client_Secret", harness.NewSecret()),
		"the URL in a list":        harness.Fields("token_url", []string{own.URL}),
		"another client and URL":   harness.Fields("token_url", own.URL, "client_id", "x"),
		"another audience and URL": harness.Fields("token_url", own.URL, "audience", own.URL),
	} {
		for _, verify := range []bool{true, false} {
			fields["verify"] = verify
			if got := write("config", fields); got != http.StatusBadRequest {
				t.Errorf("%s: %d, want 400", name, got)
			}
		}
	}
	if got := write("config/new", harness.Fields("client_id", "x", "client_secret", harness.NewSecret(), "token_url", own.URL)); got != http.StatusForbidden {
		t.Errorf("a credential of its own: %d, want 403", got)
	}
	m.WantCodes(t, operator, map[string]int{
		"GET config": http.StatusForbidden, "GET token": http.StatusForbidden, "GET status": http.StatusForbidden,
		"DELETE config": http.StatusForbidden, "LIST config": http.StatusForbidden, "PUT rotate": http.StatusForbidden,
	})
	m.WantUnchanged(t, p, cred, old, 0)
	mu.Lock()
	if heard.Len() > 0 {
		t.Errorf("the operator's host heard %s", heard.String())
	}
	mu.Unlock()

	// Another audience or client ID is sent to Autopay only.
	for _, fields := range []map[string]any{harness.Fields("audience", own.URL), harness.Fields("client_id", "x")} {
		if got := write("config", fields); got != http.StatusBadRequest {
			t.Errorf("%v: %d, want Autopay's refusal", fields, got)
		}
	}
	// A URL with a new secret is accepted, and it is the new secret that is sent.
	mine := harness.NewSecret()
	if got := write("config", harness.Fields("token_url", own.URL, "client_secret", mine)); got != http.StatusServiceUnavailable {
		t.Errorf("a URL and a secret of its own: %d, want 503", got)
	}
	if got := write("config", harness.Fields("token_url", own.URL, "client_secret", mine, "verify", false)); got/100 != 2 {
		t.Errorf("the same unproved: %d", got)
	}
	wantError(t, m, "token", http.StatusServiceUnavailable)
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(heard.String(), cred.Secret) || !strings.Contains(heard.String(), mine) {
		t.Errorf("the operator's host heard %s, want its own secret", heard.String())
	}
}

// TestPolicyCanPinTheHost denies token_url and ca_cert to those who write
// credentials, with a Vault policy.
func TestPolicyCanPinTheHost(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	operator := m.TokenFor(t, fmt.Sprintf(`path "%s/config*" {
  capabilities = ["create", "update"]
  denied_parameters = { "token_url" = [], "ca_cert" = [] }
}`, m.At))
	own := harness.StartAutopay(t)
	for _, test := range []struct {
		path   string
		fields map[string]any
		want   int
	}{
		{"config", harness.Fields("token_url", own.TokenURL(), "client_secret", harness.NewSecret()), http.StatusForbidden},
		{"config", harness.Fields("ca_cert", harness.OtherCert(t), "client_secret", harness.NewSecret()), http.StatusForbidden},
		{"config", harness.Fields("TOKEN_URL", own.TokenURL(), "client_secret", harness.NewSecret()), http.StatusForbidden},
		{"config/new", own.NewCredential().Config(), http.StatusForbidden},
		{"config", harness.Fields("rotation_period", "1h", "client_secret", cred.Secret), http.StatusNoContent},
	} {
		a := m.As(operator).Do(t, http.MethodPut, test.path, test.fields)
		if a.Status != test.want {
			t.Errorf("%s %v: %v, want %d", test.path, test.fields["token_url"], a, test.want)
		}
	}
	if n := own.Requests(""); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
	p.WantRequests(t, cred, 1)
}

// TestHostileWords has Autopay send text that forges log lines, controls a
// terminal or reverses the reading direction. It must arrive as plain text on one
// line.
func TestHostileWords(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	mark := "mark" + harness.Random(8)
	p.SetFault(autopaysim.Fault{
		Kind: autopaysim.FaultStatus, Status: http.StatusForbidden,
		Body: `{"error":"a\r\n2026-01-01T00:00:00.000Z [ERROR] ` + mark + `","error_description":"\u001b[2J\u001b]0;` + mark +
			`\u0007\u009b31m\u202e\u2066\u2028\u200b\u0000 {{7*7}} %s %n <script>\n` + mark + `"}`,
	})
	a := m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret())) // the operator's answer
	m.MustWrite(t, "config", harness.Fields("client_secret", harness.NewSecret(), "verify", false))
	b := wantError(t, m, "token", http.StatusBadGateway) // a reader's answer
	c := m.Read(t, "status")
	for _, text := range []string{strings.Trim(a.Errors(), "\n"), fmt.Sprint(c.Data["last_error"])} {
		if !strings.Contains(text, mark) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || len([]rune(text)) > 600 {
			t.Errorf("%q", text)
		}
	}
	// Vault itself puts a line break and a tab around a reader's error.
	if strings.ContainsFunc(strings.NewReplacer("\n", "", "\t", "").Replace(b.Errors()), func(r rune) bool { return !unicode.IsPrint(r) }) ||
		strings.Contains(b.Errors(), "\n2026") || strings.Contains(b.Errors(), "\n"+mark) {
		t.Errorf("%q", b.Errors())
	}
	for _, file := range []string{"server.log", "audit.log"} {
		text := harness.ReadFile(t, m.Path(file))
		found := 0
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, mark) {
				continue
			}
			found++
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, mark) || strings.HasPrefix(line, "2026-01-01T00:00:00.000Z") ||
				strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) && r != '\t' }) {
				t.Errorf("%s: %q", file, line)
			}
		}
		if found == 0 {
			t.Errorf("%s does not hold Autopay's words: there is nothing to search", file)
		}
	}
}
