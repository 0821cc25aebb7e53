//go:build acceptance

package engine

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// operator returns the mount for a user with some capabilities on its config paths, and nothing else.
func operator(t *testing.T, m harness.Mount, capabilities string) harness.Mount {
	t.Helper()
	return m.As(m.TokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = %s }`, m.At, capabilities)))
}

// TestUpdateOnlyOperator gives an operator a policy to update a credential, and
// nothing else. No write may send the stored secret to a host of the operator's.
func TestUpdateOnlyOperator(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)
	updater, creator := operator(t, m, `["update"]`), operator(t, m, `["create"]`)

	own := harness.StartAutopay(t)
	url, secret := own.TokenURL(), harness.NewSecret()
	for name, fields := range map[string]map[string]any{
		"another URL":             harness.Fields("token_url", url),
		"a path of the same host": harness.Fields("token_url", cred.TokenURL+"/x"),
		"Autopay's own URL":       harness.Fields("token_url", ""),
		"another CA":              harness.Fields("ca_cert", harness.OtherCert(t)),
		"an empty secret":         harness.Fields("token_url", url, "client_secret", ""),
		"a null secret":           harness.Fields("token_url", url, "client_secret", nil),
		"a secret in a list":      harness.Fields("token_url", url, "client_secret", []string{secret}),
		"the field in other case": harness.Fields("token_url", url, "Client_Secret", secret),
		"another client and URL":  harness.Fields("token_url", url, "client_id", "x"),
	} {
		for _, verify := range []bool{true, false} {
			fields["verify"] = verify
			updater.Write(t, "config", fields).Want(t, name, http.StatusBadRequest, "client_secret")
		}
	}
	updater.WantCodes(t, map[string]int{
		"GET config": http.StatusForbidden, "GET token": http.StatusForbidden, "GET status": http.StatusForbidden,
		"DELETE config": http.StatusForbidden, "LIST config": http.StatusForbidden, "PUT rotate": http.StatusForbidden,
	})
	// A new name takes the create capability, and an existing one update.
	updater.Write(t, "config/new", own.NewCredential().Config()).Want(t, "a new name", http.StatusForbidden)
	creator.Write(t, "config", cred.Config()).Want(t, "an update with create", http.StatusForbidden)
	creator.Write(t, "config/new", p.NewCredential().Config()).Want(t, "a new name with create", http.StatusNoContent)
	// The same URL is no change.
	updater.Write(t, "config", harness.Fields("token_url", cred.TokenURL)).Want(t, "the same URL", http.StatusNoContent)
	m.WantUnchanged(t, p, cred, old, 0)
	if n := own.Requests(""); n != 0 {
		t.Errorf("the operator's host got %d requests", n)
	}

	// Another audience or client ID is sent to Autopay only.
	updater.Write(t, "config", harness.Fields("audience", url)).Want(t, "another audience", http.StatusBadRequest)
	// A URL with a new secret is accepted, and it is the new secret that is sent.
	own.SetClient(cred.ID, secret)
	change := harness.Fields("token_url", url, "client_secret", secret)
	updater.Write(t, "config", change).Want(t, "a URL and a secret of its own", http.StatusNoContent)
	if owner := own.Owner(t, m.Token(t, "").AccessToken); owner != cred.ID || own.Requests("") != 1 {
		t.Errorf("the token is %q's, after %d requests to the operator's host", owner, own.Requests(""))
	}
}

// TestPolicyCanPinTheHost denies token_url and ca_cert to those who write
// credentials, with a Vault policy.
func TestPolicyCanPinTheHost(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	pinned := operator(t, m, `["create", "update"]
  denied_parameters = { "token_url" = [], "ca_cert" = [] }`)
	own := harness.StartAutopay(t).NewCredential()
	for field, value := range map[string]any{
		"token_url": own.TokenURL, "TOKEN_URL": own.TokenURL, "ca_cert": harness.OtherCert(t),
	} {
		fields := harness.Fields(field, value, "client_secret", own.Secret)
		pinned.Write(t, "config", fields).Want(t, field, http.StatusForbidden)
	}
	pinned.Write(t, "config/new", own.Config()).Want(t, "a new name", http.StatusForbidden)
	pinned.Write(t, "config", harness.Fields("rotation_period", "1h")).Want(t, "rotation_period", http.StatusNoContent)
	p.WantRequests(t, cred, 1)
}

// TestQueryParameterDoesNotNameAToken tries to get around a policy with a query
// parameter. The path alone decides the name.
func TestQueryParameterDoesNotNameAToken(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	m.MustWrite(t, "config/oslo", p.NewCredential().Config())
	for path, queries := range map[string][]string{
		"token":      {"?name=oslo", "?name="},
		"token/oslo": {"?name=default", "?name="},
	} {
		app := m.As(m.TokenFor(t, fmt.Sprintf(`path "%s/%s" { capabilities = ["read"] }`, m.At, path)))
		want := m.Read(t, path).Data["access_token"]
		for _, query := range queries {
			a := app.Read(t, path+query)
			if a.Status != http.StatusOK || a.Data["access_token"] != want {
				t.Errorf("%s: %v, want the token of the path's name", path+query, a)
			}
		}
	}
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
	check := func(where, text string) {
		t.Helper()
		forged := strings.HasPrefix(text, mark) || strings.HasPrefix(text, "2026-01-01T00:00:00.000Z")
		if forged || !strings.Contains(text, mark) ||
			strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) && r != '\t' }) {
			t.Errorf("%s: %q", where, text)
		}
	}
	written := m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret()))
	check("the operator's answer", strings.Trim(written.Errors(), "\n"))
	m.MustWrite(t, "config", harness.Fields("client_secret", harness.NewSecret(), "verify", false))
	read := wantError(t, m, "token", http.StatusBadGateway, mark)
	// Vault itself puts a line break and a tab around a reader's error.
	_, ours, _ := strings.Cut(strings.Trim(read.Errors(), "\n"), "\n")
	check("a reader's answer", ours)
	check("status", fmt.Sprint(m.Read(t, "status").Data["last_error"]))
	for _, file := range []string{"server.log", "audit.log"} {
		found := 0
		for line := range strings.Lines(string(harness.ReadFile(t, m.Path(file)))) {
			if strings.Contains(line, mark) {
				found++
				check(file, strings.TrimSuffix(line, "\n"))
			}
		}
		if found == 0 {
			t.Errorf("%s does not hold Autopay's words: there is nothing to search", file)
		}
	}
}

// TestSecretInOtherRequests sends a client_secret to paths and with verbs that
// take none. A query parameter that is given twice reaches the plugin as an array.
func TestSecretInOtherRequests(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)
	secret := harness.CanaryAudited + harness.Random(16)
	query := "?client_secret=" + secret + "&client_secret=" + secret
	body := map[string]any{"name": []any{secret}, "client_secret": map[string]any{"x": secret}}
	for _, path := range strings.Fields("config config/ config/oslo token token/oslo status rotate nowhere") {
		m.Do(t, http.MethodGet, path+query, nil)
		m.Do(t, "LIST", path+query, nil)
		m.Do(t, http.MethodPatch, path+query, body)
		m.Do(t, http.MethodPut, path+query, body)
		if path != "config" {
			m.Do(t, http.MethodDelete, path+query, nil)
		}
	}
	m.WantUnchanged(t, p, cred, old, 0)
	m.Do(t, http.MethodDelete, "config"+query, nil)
}

// TestLogsAreWatched shows that the search for secrets has something to search:
// the plugin's log lines and its answers are in the files that it reads.
func TestLogsAreWatched(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	m.Token(t, "")
	p.SetFault(harness.Down)
	m.Write(t, "config", harness.Fields("client_secret", harness.NewSecret()))

	harness.Eventually(t, 10*time.Second, "the logs do not tell of the mount "+m.At, func() bool {
		server := string(harness.ReadFile(t, m.Path("server.log")))
		audit := string(harness.ReadFile(t, m.Path("audit.log")))
		pluginLine := false
		for line := range strings.Lines(server) {
			pluginLine = pluginLine || strings.Contains(line, harness.PluginName) && strings.Contains(line, m.At)
		}
		return pluginLine && strings.Contains(server, "[TRACE]") &&
			strings.Contains(audit, m.At+"/token") && strings.Contains(audit, "verify=false")
	})
}
