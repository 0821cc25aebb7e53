//go:build acceptance

package acceptance

import (
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// TestSecretOfWrongType sends a client_secret that is not a string, on
// creation and on update. Vault's SDK would quote it into the answer and the
// server log; the search of both is in canary_test.go.
func TestSecretOfWrongType(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)

	for name, value := range map[string]any{
		"an object":        map[string]any{"value": newSecret()},
		"an object's key":  map[string]any{canaryAudited: true},
		"nested":           map[string]any{"a": []any{map[string]any{"b": newSecret()}}},
		"an array":         []string{newSecret()},
		"an array of two":  []any{newSecret(), 2},
		"a number":         json.Number(canaryNumber),
		"a large number":   json.Number(canaryNumber + "0000000"),
		"a fraction":       json.Number("0." + canaryNumber),
		"a number in [ ]":  []any{json.Number(canaryNumber)},
		"true":             true,
		"an empty object":  map[string]any{},
		"an array of null": []any{nil},
	} {
		t.Run(name, func(t *testing.T) {
			for path, verb := range map[string]string{"config": "update", "config/new": "create"} {
				fields := cred.config("client_secret", value)
				if a := m.write(t, path, fields); a.status != http.StatusBadRequest || !strings.Contains(a.errors(), "client_secret") {
					t.Errorf("%s: %v, want 400 that names client_secret", verb, a)
				}
			}
			if a := m.read(t, "config/new"); a.status != http.StatusNotFound {
				t.Errorf("it created %v", a)
			}
			m.wantUnchanged(t, p, cred, old, 0)
		})
	}
}

// TestSecretInOtherRequests sends it with verbs and to paths that take none:
// given twice, a query parameter is an array to the plugin.
func TestSecretInOtherRequests(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)
	secret := canaryAudited + random(16)
	query := "?client_secret=" + secret + "&client_secret=" + secret

	body := map[string]any{"name": []any{secret}, "client_secret": map[string]any{"x": secret}}

	for _, path := range []string{"config", "config/", "config/oslo", "token", "token/oslo", "status", "rotate", "nowhere"} {
		m.do(t, http.MethodGet, path+query, nil)
		m.do(t, "LIST", path+query, nil)
		m.do(t, http.MethodPatch, path+query, body)
		m.do(t, http.MethodPut, path+query, body)
		if path != "config" {
			m.do(t, http.MethodDelete, path+query, nil)
		}
	}
	m.wantUnchanged(t, p, cred, old, 0)
	m.do(t, http.MethodDelete, "config"+query, nil)
}

// TestSecretInWrongPlace sends the secret where none belongs: no answer and no
// log repeats the value.
func TestSecretInWrongPlace(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)
	secret := newSecret()

	for name, fields := range map[string]map[string]any{
		"client_id of a wrong type":           pairs("client_id", map[string]any{"x": secret}),
		"token_url of a wrong type":           pairs("token_url", []any{secret}),
		"token_url that is no URL":            pairs("token_url", secret, "client_secret", secret),
		"token_url with a password":           pairs("token_url", "https://u:"+secret+"@api-auth.autopay.io/t", "client_secret", secret),
		"token_url with a control character":  pairs("token_url", "https://api-auth.autopay.io/\x7f"+secret, "client_secret", secret),
		"ca_cert":                             pairs("ca_cert", secret, "client_secret", secret),
		"ca_cert of a wrong type":             pairs("ca_cert", map[string]any{"x": secret}),
		"rotation_period":                     pairs("rotation_period", secret),
		"rotation_period of a wrong type":     pairs("rotation_period", map[string]any{"x": secret}),
		"request_timeout":                     pairs("request_timeout", secret),
		"token_request_limit":                 pairs("token_request_limit", secret),
		"token_request_limit of a wrong type": pairs("token_request_limit", []any{secret}),
		"verify":                              pairs("verify", secret),
		"verify of a wrong type":              pairs("verify", map[string]any{"x": secret}),
		"audience of a wrong type":            pairs("audience", []any{secret, secret}),
	} {
		if a := m.write(t, "config", fields); a.status != http.StatusBadRequest {
			t.Errorf("%s: %v, want 400", name, a)
		}
	}
	m.wantUnchanged(t, p, cred, old, 0)
}

// TestLogsAreWatched shows that there is something to search: the trace of the
// plugin's own lines and of its answers is in the files that are searched.
func TestLogsAreWatched(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	m.token(t, "")
	p.SetFault(down)
	m.write(t, "config", pairs("client_secret", newSecret()))

	eventually(t, 10*time.Second, "the logs do not tell of the mount "+m.at, func() bool {
		server, err := os.ReadFile(m.path("server.log"))
		if err != nil {
			t.Fatal(err)
		}
		audit, err := os.ReadFile(m.path("audit.log"))
		if err != nil {
			t.Fatal(err)
		}
		pluginLine := false
		for line := range strings.Lines(string(server)) {
			pluginLine = pluginLine || strings.Contains(line, pluginName) && strings.Contains(line, m.at)
		}
		return pluginLine && strings.Contains(string(server), "[TRACE]") &&
			strings.Contains(string(audit), m.at+"/token") && strings.Contains(string(audit), "verify=false")
	})
	if found := m.leaks(); len(found) > 0 {
		t.Errorf("leaks:\n%s", strings.Join(found, "\n"))
	}
}
