//go:build acceptance

package acceptance

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// hostile starts a host that reads what it is sent, says first, and then rest
// over and over. It returns its URL.
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

// TestHostileHosts shows that a host which answers in bad faith costs one
// attempt, which ends at request_timeout at the latest. The credential is not
// held up by it: it can be read, written and deleted as before.
func TestHostileHosts(t *testing.T) {
	t.Parallel()
	const (
		ok   = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		slow = 50 * time.Millisecond
		late = "did not answer within the request_timeout of 1s"
	)
	var bomb bytes.Buffer // inflated, it is a good answer
	w := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(w, strings.Repeat(" ", 512<<10)+`{"access_token":"sim.x","token_type":"Bearer","expires_in":60}`)
	w.Close()

	for name, test := range map[string]struct{ first, rest, says string }{
		"a drip":           {ok + "\r\n", " ", late},
		"headers in drips": {ok + "X: ", "x", late},
		"another protocol": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "", "Autopay answered 101"},
		"many headers":     {ok, strings.Repeat("X-Header: "+strings.Repeat("x", 1000)+"\r\n", 100), "the connection to Autopay broke"},
		"early hints":      {"", strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("x", 1000)+"\r\n\r\n", 100), "the connection to Autopay broke"},
		"a gzip bomb":      {ok + fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", bomb.Len(), bomb.String()), "", "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, p, cred := setup(t)
			m.mustWrite(t, "config", cred.config())
			old := m.note(t, p, cred)
			bad := cred.config("token_url", hostile(t, test.first, test.rest, slow), "request_timeout", 1)

			began := time.Now()
			a := m.write(t, "config", bad)
			if a.status != http.StatusServiceUnavailable || !strings.Contains(a.errors(), test.says) {
				t.Errorf("%v, want 503 with %q", a, test.says)
			}
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
			m.wantUnchanged(t, p, cred, old, 0)

			bad["verify"] = false
			m.mustWrite(t, "config", bad)
			m.wantError(t, "token", http.StatusServiceUnavailable)
			if a := m.do(t, http.MethodDelete, "config", nil); a.status != http.StatusNoContent {
				t.Errorf("delete: %v", a)
			}
			m.mustWrite(t, "config", cred.config())
			m.token(t, "")
		})
	}
}

// TestUpdateOnlyOperator has the policy to update a credential and nothing
// else. Whatever it writes, the stored secret goes to no host of its own.
func TestUpdateOnlyOperator(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)
	operator := m.tokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = ["update"] }`, m.at))

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
		a, err := m.call(t.Context(), operator, http.MethodPut, m.at+"/"+path, fields)
		if err != nil {
			t.Fatal(err)
		}
		return a.status
	}
	for name, fields := range map[string]map[string]any{
		"another URL":              pairs("token_url", own.URL),
		"a path of the same host":  pairs("token_url", cred.tokenURL+"/x"),
		"Autopay's own URL":        pairs("token_url", ""),
		"another CA":               pairs("ca_cert", otherCert(t)),
		"both":                     pairs("token_url", own.URL, "ca_cert", otherCert(t)),
		"an empty secret":          pairs("token_url", own.URL, "client_secret", ""),
		"a null secret":            pairs("token_url", own.URL, "client_secret", nil),
		"a secret in a list":       pairs("token_url", own.URL, "client_secret", []string{newSecret()}),
		"the field in other case":  pairs("token_url", own.URL, "Client_Secret", newSecret()),
		"the URL in a list":        pairs("token_url", []string{own.URL}),
		"another client and URL":   pairs("token_url", own.URL, "client_id", "x"),
		"another audience and URL": pairs("token_url", own.URL, "audience", own.URL),
	} {
		for _, verify := range []bool{true, false} {
			fields["verify"] = verify
			if got := write("config", fields); got != http.StatusBadRequest {
				t.Errorf("%s: %d, want 400", name, got)
			}
		}
	}
	if got := write("config/new", pairs("client_id", "x", "client_secret", newSecret(), "token_url", own.URL)); got != http.StatusForbidden {
		t.Errorf("a credential of its own: %d, want 403", got)
	}
	m.wantCodes(t, operator, map[request]int{
		{"GET", "config"}: http.StatusForbidden, {"GET", "token"}: http.StatusForbidden, {"GET", "status"}: http.StatusForbidden,
		{"DELETE", "config"}: http.StatusForbidden, {"LIST", "config"}: http.StatusForbidden, {"PUT", "rotate"}: http.StatusForbidden,
	})
	m.wantUnchanged(t, p, cred, old, 0)
	mu.Lock()
	if heard.Len() > 0 {
		t.Errorf("the operator's host heard %s", heard.String())
	}
	mu.Unlock()

	// An audience of its own, or another client ID, goes to Autopay alone.
	for _, fields := range []map[string]any{pairs("audience", own.URL), pairs("client_id", "x")} {
		if got := write("config", fields); got != http.StatusBadRequest {
			t.Errorf("%v: %d, want Autopay's refusal", fields, got)
		}
	}
	// With a secret of its own the URL is taken. That is the secret which is sent.
	mine := newSecret()
	if got := write("config", pairs("token_url", own.URL, "client_secret", mine)); got != http.StatusServiceUnavailable {
		t.Errorf("a URL and a secret of its own: %d, want 503", got)
	}
	if got := write("config", pairs("token_url", own.URL, "client_secret", mine, "verify", false)); got/100 != 2 {
		t.Errorf("the same unproved: %d", got)
	}
	m.wantError(t, "token", http.StatusServiceUnavailable)
	mu.Lock()
	defer mu.Unlock()
	if strings.Contains(heard.String(), cred.secret) || !strings.Contains(heard.String(), mine) {
		t.Errorf("the operator's host heard %s, want its own secret", heard.String())
	}
}

// TestPolicyCanPinTheHost keeps token_url and ca_cert from those who write
// credentials, by Vault's own means.
func TestPolicyCanPinTheHost(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	operator := m.tokenFor(t, fmt.Sprintf(`path "%s/config*" {
  capabilities = ["create", "update"]
  denied_parameters = { "token_url" = [], "ca_cert" = [] }
}`, m.at))
	own := startProvider(t)
	for _, test := range []struct {
		path   string
		fields map[string]any
		want   int
	}{
		{"config", pairs("token_url", own.tokenURL(), "client_secret", newSecret()), http.StatusForbidden},
		{"config", pairs("ca_cert", otherCert(t), "client_secret", newSecret()), http.StatusForbidden},
		{"config", pairs("TOKEN_URL", own.tokenURL(), "client_secret", newSecret()), http.StatusForbidden},
		{"config/new", own.newCredential().config(), http.StatusForbidden},
		{"config", pairs("rotation_period", "1h", "client_secret", cred.secret), http.StatusNoContent},
	} {
		a, err := m.call(t.Context(), operator, http.MethodPut, m.at+"/"+test.path, test.fields)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != test.want {
			t.Errorf("%s %v: %v, want %d", test.path, test.fields["token_url"], a, test.want)
		}
	}
	if n := own.Requests(""); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
	p.asked(t, cred, 1)
}

// TestHostileWords has Autopay send what would forge a log line, steer a
// terminal or turn text around. It arrives as plain text on one line.
func TestHostileWords(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	mark := "mark" + random(8)
	p.SetFault(autopaysim.Fault{
		Kind: autopaysim.FaultStatus, Status: http.StatusForbidden,
		Body: `{"error":"a\r\n2026-01-01T00:00:00.000Z [ERROR] ` + mark + `","error_description":"\u001b[2J\u001b]0;` + mark +
			`\u0007\u009b31m\u202e\u2066\u2028\u200b\u0000 {{7*7}} %s %n <script>\n` + mark + `"}`,
	})
	a := m.write(t, "config", pairs("client_secret", newSecret())) // the operator's answer
	m.mustWrite(t, "config", pairs("client_secret", newSecret(), "verify", false))
	b := m.wantError(t, "token", http.StatusBadGateway) // a reader's answer
	c := m.read(t, "status")
	for _, text := range []string{strings.Trim(a.errors(), "\n"), fmt.Sprint(c.data["last_error"])} {
		if !strings.Contains(text, mark) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || len([]rune(text)) > 600 {
			t.Errorf("%q", text)
		}
	}
	// Vault itself frames a reader's error in a line break and a tab.
	if strings.ContainsFunc(strings.NewReplacer("\n", "", "\t", "").Replace(b.errors()), func(r rune) bool { return !unicode.IsPrint(r) }) ||
		strings.Contains(b.errors(), "\n2026") || strings.Contains(b.errors(), "\n"+mark) {
		t.Errorf("%q", b.errors())
	}
	for _, file := range []string{"server.log", "audit.log"} {
		text, err := os.ReadFile(m.path(file))
		if err != nil {
			t.Fatal(err)
		}
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
