//go:build acceptance

package engine

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestSecretOfWrongType creates and updates credentials with a client_secret that
// is not a string. Vault's SDK would quote it in the answer and in the server log.
// The harness searches both.
func TestSecretOfWrongType(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)

	for name, value := range map[string]any{
		"an object":        map[string]any{"value": harness.NewSecret()},
		"an object's key":  map[string]any{harness.CanaryAudited: true},
		"nested":           map[string]any{"a": []any{map[string]any{"b": harness.NewSecret()}}},
		"an array":         []string{harness.NewSecret()},
		"an array of two":  []any{harness.NewSecret(), 2},
		"a number":         json.Number(harness.CanaryNumber),
		"a large number":   json.Number(harness.CanaryNumber + "0000000"),
		"a fraction":       json.Number("0." + harness.CanaryNumber),
		"a number in [ ]":  []any{json.Number(harness.CanaryNumber)},
		"true":             true,
		"an empty object":  map[string]any{},
		"an array of null": []any{nil},
	} {
		t.Run(name, func(t *testing.T) {
			for path, verb := range map[string]string{"config": "update", "config/new": "create"} {
				fields := cred.Config("client_secret", value)
				m.Write(t, path, fields).Want(t, verb, http.StatusBadRequest, "client_secret")
			}
			m.Read(t, "config/new").Want(t, "config of a refused creation", http.StatusNotFound)
			m.WantUnchanged(t, p, cred, old, 0)
		})
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

	for _, path := range []string{"config", "config/", "config/oslo", "token", "token/oslo", "status", "rotate", "nowhere"} {
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

// TestSecretInWrongPlace sends the secret in other fields. No answer and no log may
// repeat it.
func TestSecretInWrongPlace(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)
	secret := harness.NewSecret()

	for name, fields := range map[string]map[string]any{
		"client_id of a wrong type":           harness.Fields("client_id", map[string]any{"x": secret}),
		"token_url of a wrong type":           harness.Fields("token_url", []any{secret}),
		"token_url that is no URL":            harness.Fields("token_url", secret, "client_secret", secret),
		"token_url with a password":           harness.Fields("token_url", "https://u:"+secret+"@api-auth.autopay.io/t", "client_secret", secret),
		"token_url with a control character":  harness.Fields("token_url", "https://api-auth.autopay.io/\x7f"+secret, "client_secret", secret),
		"ca_cert":                             harness.Fields("ca_cert", secret, "client_secret", secret),
		"ca_cert of a wrong type":             harness.Fields("ca_cert", map[string]any{"x": secret}),
		"rotation_period":                     harness.Fields("rotation_period", secret),
		"rotation_period of a wrong type":     harness.Fields("rotation_period", map[string]any{"x": secret}),
		"request_timeout":                     harness.Fields("request_timeout", secret),
		"token_request_limit":                 harness.Fields("token_request_limit", secret),
		"token_request_limit of a wrong type": harness.Fields("token_request_limit", []any{secret}),
		"verify":                              harness.Fields("verify", secret),
		"verify of a wrong type":              harness.Fields("verify", map[string]any{"x": secret}),
		"audience of a wrong type":            harness.Fields("audience", []any{secret, secret}),
	} {
		m.Write(t, "config", fields).Want(t, name, http.StatusBadRequest)
	}
	m.WantUnchanged(t, p, cred, old, 0)
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
		server := harness.ReadFile(t, m.Path("server.log"))
		audit := harness.ReadFile(t, m.Path("audit.log"))
		pluginLine := false
		for line := range strings.Lines(string(server)) {
			pluginLine = pluginLine || strings.Contains(line, harness.PluginName) && strings.Contains(line, m.At)
		}
		return pluginLine && strings.Contains(string(server), "[TRACE]") &&
			strings.Contains(string(audit), m.At+"/token") && strings.Contains(string(audit), "verify=false")
	})
	if found := m.Leaks(); len(found) > 0 {
		t.Errorf("leaks:\n%s", strings.Join(found, "\n"))
	}
}
