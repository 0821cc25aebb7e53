//go:build acceptance

package acceptance

import (
	"fmt"
	"net/http"
	"testing"
)

// request is one that a policy allows or not.
type request struct{ method, path string }

// wantCodes sends each request with a token and compares the answer's code.
func (m mount) wantCodes(t *testing.T, token string, wants map[request]int) {
	t.Helper()
	for r, want := range wants {
		a, err := m.call(t.Context(), token, r.method, m.at+"/"+r.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != want {
			t.Errorf("%s %s: %v, want %d", r.method, r.path, a, want)
		}
	}
}

// twoNames is a mount with the names default and oslo, and their tokens.
func twoNames(t *testing.T) (m mount, byDefault, oslo string) {
	t.Helper()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	m.mustWrite(t, "config/oslo", p.newCredential().config())
	return m, m.token(t, "").AccessToken, m.token(t, "oslo").AccessToken
}

// TestAppPolicy gives an application the one thing it needs.
func TestAppPolicy(t *testing.T) {
	t.Parallel()
	m, want, _ := twoNames(t)
	app := m.tokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.at))

	secret, err := m.client(app).Logical().Read(m.at + "/token")
	if err != nil || secret.Data["access_token"] != want {
		t.Fatalf("%v, %v", secret, err)
	}
	m.wantCodes(t, app, map[request]int{
		{"GET", "token/oslo"}:    http.StatusForbidden,
		{"GET", "token/default"}: http.StatusForbidden,
		{"PUT", "token"}:         http.StatusForbidden,
		{"GET", "config"}:        http.StatusForbidden,
		{"PUT", "config"}:        http.StatusForbidden,
		{"DELETE", "config"}:     http.StatusForbidden,
		{"LIST", "config"}:       http.StatusForbidden,
		{"GET", "status"}:        http.StatusForbidden,
		{"PUT", "rotate"}:        http.StatusForbidden,
	})
}

// TestQueryParameterDoesNotNameAToken tries to step around a policy on the
// path: the name is the path's.
func TestQueryParameterDoesNotNameAToken(t *testing.T) {
	t.Parallel()
	m, byDefault, oslo := twoNames(t)
	app := m.tokenFor(t, fmt.Sprintf(`path "%s/token" { capabilities = ["read"] }`, m.at))
	osloApp := m.tokenFor(t, fmt.Sprintf(`path "%s/token/oslo" { capabilities = ["read"] }`, m.at))

	for _, test := range []struct{ token, path, want string }{
		{app, "token?name=oslo", byDefault},
		{app, "token?name=", byDefault},
		{osloApp, "token/oslo?name=default", oslo},
		{osloApp, "token/oslo?name=", oslo},
	} {
		a, err := m.call(t.Context(), test.token, http.MethodGet, m.at+"/"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != http.StatusOK || a.data["access_token"] != test.want {
			t.Errorf("%s: %v, want the token of the path's name", test.path, a)
		}
	}
}

// TestOperatorPolicy gives an operator all but the tokens.
func TestOperatorPolicy(t *testing.T) {
	t.Parallel()
	m, _, _ := twoNames(t)
	operator := m.tokenFor(t, fmt.Sprintf(`
path "%[1]s/config"   { capabilities = ["create", "update", "read", "delete", "list"] }
path "%[1]s/config/*" { capabilities = ["create", "update", "read", "delete", "list"] }
path "%[1]s/status"   { capabilities = ["read"] }
path "%[1]s/status/*" { capabilities = ["read"] }
`, m.at))

	m.wantCodes(t, operator, map[request]int{
		{"GET", "config"}:      http.StatusOK,
		{"GET", "config/oslo"}: http.StatusOK,
		{"LIST", "config"}:     http.StatusOK,
		{"GET", "status"}:      http.StatusOK,
		{"GET", "status/oslo"}: http.StatusOK,
		{"GET", "token"}:       http.StatusForbidden,
		{"GET", "token/oslo"}:  http.StatusForbidden,
	})
	secret, err := m.client(operator).Logical().Write(m.at+"/config/oslo", map[string]any{"rotation_period": "1h"})
	if err != nil {
		t.Errorf("the operator's write: %v, %v", secret, err)
	}
	m.wantCodes(t, operator, map[request]int{{"DELETE", "config/oslo"}: http.StatusNoContent})
}

// TestCreateAndUpdateDiffer shows that the policy for a new name is not the
// one for a name that exists.
func TestCreateAndUpdateDiffer(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	creator := m.tokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = ["create"] }`, m.at))
	updater := m.tokenFor(t, fmt.Sprintf(`path "%s/config*" { capabilities = ["update"] }`, m.at))

	write := func(token, path string, fields map[string]any, want int) {
		t.Helper()
		a, err := m.call(t.Context(), token, http.MethodPut, m.at+"/"+path, fields)
		if err != nil {
			t.Fatal(err)
		}
		if a.status/100 != want/100 {
			t.Errorf("%s: %v, want %d", path, a, want)
		}
	}
	write(creator, "config", pairs("rotation_period", 3600), http.StatusForbidden)
	write(updater, "config", pairs("rotation_period", 3600), http.StatusOK)
	write(updater, "config/new", p.newCredential().config(), http.StatusForbidden)
	write(creator, "config/new", p.newCredential().config(), http.StatusOK)
}
