//go:build acceptance

package engine

import (
	"fmt"
	"net/http"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// twoNames is a mount with the names default and oslo, and their tokens.
func twoNames(t *testing.T) (m harness.Mount, byDefault, oslo string) {
	t.Helper()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	m.MustWrite(t, "config/oslo", p.NewCredential().Config())
	return m, m.Token(t, "").AccessToken, m.Token(t, "oslo").AccessToken
}

// TestAppPolicy gives an application a policy to read its token, and nothing else.
func TestAppPolicy(t *testing.T) {
	t.Parallel()
	m, want, _ := twoNames(t)
	app := m.TokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.At))

	secret, err := m.Client(app).Logical().Read(m.At + "/token")
	if err != nil || secret.Data["access_token"] != want {
		t.Fatalf("%v, %v", secret, err)
	}
	m.WantCodes(t, app, map[string]int{
		"GET token/oslo":    http.StatusForbidden,
		"GET token/default": http.StatusForbidden,
		"PUT token":         http.StatusForbidden,
		"GET config":        http.StatusForbidden,
		"PUT config":        http.StatusForbidden,
		"DELETE config":     http.StatusForbidden,
		"LIST config":       http.StatusForbidden,
		"GET status":        http.StatusForbidden,
		"PUT rotate":        http.StatusForbidden,
	})
}

// TestQueryParameterDoesNotNameAToken tries to get around a policy with a query
// parameter. The path alone decides the name.
func TestQueryParameterDoesNotNameAToken(t *testing.T) {
	t.Parallel()
	m, byDefault, oslo := twoNames(t)
	app := m.TokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.At))
	osloApp := m.TokenFor(t, fmt.Sprintf(`path "%s/token/oslo" { capabilities = ["read"] }`, m.At))

	for _, test := range []struct{ token, path, want string }{
		{app, "token?name=oslo", byDefault},
		{app, "token?name=", byDefault},
		{osloApp, "token/oslo?name=default", oslo},
		{osloApp, "token/oslo?name=", oslo},
	} {
		a := m.As(test.token).Do(t, http.MethodGet, test.path, nil)
		if a.Status != http.StatusOK || a.Data["access_token"] != test.want {
			t.Errorf("%s: %v, want the token of the path's name", test.path, a)
		}
	}
}

// TestOperatorPolicy gives an operator a policy for everything but the tokens.
func TestOperatorPolicy(t *testing.T) {
	t.Parallel()
	m, _, _ := twoNames(t)
	operator := m.TokenFor(t, fmt.Sprintf(`
path "%[1]s/config"   { capabilities = ["create", "update", "read", "delete", "list"] }
path "%[1]s/config/*" { capabilities = ["create", "update", "read", "delete", "list"] }
path "%[1]s/status"   { capabilities = ["read"] }
path "%[1]s/status/*" { capabilities = ["read"] }
`, m.At))

	m.WantCodes(t, operator, map[string]int{
		"GET config":      http.StatusOK,
		"GET config/oslo": http.StatusOK,
		"LIST config":     http.StatusOK,
		"GET status":      http.StatusOK,
		"GET status/oslo": http.StatusOK,
		"GET token":       http.StatusForbidden,
		"GET token/oslo":  http.StatusForbidden,
	})
	secret, err := m.Client(operator).Logical().Write(m.At+"/config/oslo", map[string]any{"rotation_period": "1h"})
	if err != nil {
		t.Errorf("the operator's write: %v, %v", secret, err)
	}
	m.WantCodes(t, operator, map[string]int{"DELETE config/oslo": http.StatusNoContent})
}

// TestCreateAndUpdateDiffer shows that a new name takes the create capability, and
// an existing one update.
func TestCreateAndUpdateDiffer(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	creator := m.TokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = ["create"] }`, m.At))
	updater := m.TokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = ["update"] }`, m.At))

	write := func(token, path string, fields map[string]any, want int) {
		t.Helper()
		a := m.As(token).Do(t, http.MethodPut, path, fields)
		if a.Status/100 != want/100 {
			t.Errorf("%s: %v, want %d", path, a, want)
		}
	}
	write(creator, "config", harness.Fields("rotation_period", 3600), http.StatusForbidden)
	write(updater, "config", harness.Fields("rotation_period", 3600), http.StatusOK)
	write(updater, "config/new", p.NewCredential().Config(), http.StatusForbidden)
	write(creator, "config/new", p.NewCredential().Config(), http.StatusOK)
}
