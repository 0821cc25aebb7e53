//go:build acceptance

package engine

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestMainJob goes through a credential's whole life with the vault command.
func TestMainJob(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	vault := func(want int, args []string, contains ...string) string {
		t.Helper()
		out, code := m.CLI(t, m.RootToken, args...)
		if code != want {
			t.Errorf("vault %v: exit %d, want %d: %s", args, code, want, out)
		}
		for _, want := range contains {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in the output:\n%s", want, out)
			}
		}
		return out
	}
	config, token, status := m.At+"/config", m.At+"/token", m.At+"/status"
	field := func(name string) string { t.Helper(); return vault(0, []string{"read", "-field=" + name, token}) }
	write := func(want int, fields []string, contains ...string) {
		t.Helper()
		vault(want, append([]string{"write", config}, fields...), contains...)
	}

	vault(2, []string{"read", token}, "Code: 400", "client_id and client_secret to config")
	vault(2, []string{"read", status}, "No value found")

	// The secret is read from a file, to keep it out of the shell's history.
	file := harness.WriteFile(t, filepath.Join(t.TempDir(), "secret"), cred.Secret, 0o600)
	write(0, []string{"client_id=" + cred.ID, "client_secret=@" + file, "token_url=" + cred.TokenURL},
		"Success! Data written to: "+config)

	vault(0, []string{"read", token}, "access_token", "expire_time", "rotation_period", "ttl")
	first := field("access_token")
	if !p.Accepts(t, first) {
		t.Errorf("the API does not accept %q", first)
	}
	var parsed struct {
		LeaseID string `json:"lease_id"`
		Data    harness.Token
	}
	if err := json.Unmarshal([]byte(vault(0, []string{"read", "-format=json", token})), &parsed); err != nil {
		t.Error(err)
	}
	if parsed.Data.AccessToken != first || parsed.LeaseID != "" {
		t.Errorf("-format=json reads another answer: %+v", parsed)
	}

	vault(0, []string{"list", config}, "default")
	vault(0, []string{"read", config}, cred.ID, cred.TokenURL)
	vault(0, []string{"read", "-field=state", status}, "ok")
	write(0, []string{"rotation_period=2h"}, "Success!")
	if got := field("rotation_period"); got != "7200" {
		t.Errorf("rotation_period %s, want 7200", got)
	}
	write(0, []string{"rotation_perod=2h"}, "rotation_perod", "WARNING")
	write(2, []string{"rotation_period=soon"}, "Code: 400", "rotation_period")
	p.WantRequests(t, cred, 1)

	// Autopay's console gave the operator a new secret.
	next := harness.NewSecret()
	p.SetClient(cred.ID, next)
	write(0, []string{"client_secret=@" + harness.WriteFile(t, file, next, 0o600)}, "Success!")
	if replaced := field("access_token"); replaced == first || !p.Accepts(t, replaced) {
		t.Error("the token of the old secret is still served, or the API does not accept the new one")
	}
	p.WantRequests(t, cred, 2)

	for range 2 {
		vault(0, []string{"delete", config}, "Success!")
		vault(2, []string{"read", token}, "Code: 400")
	}
}

// TestPathHelp reads the help of the mount and of each path.
func TestPathHelp(t *testing.T) {
	t.Parallel()
	m := harness.Enable(t, harness.SharedVault(t))
	for path, wants := range map[string][]string{
		"":            {"config", "token", "status"},
		"config/oslo": {"client_id", "client_secret", "token_url", "rotation_period", "ca_cert", "verify"},
		"token":       {"bearer token"},
		"status":      {"health"},
		"rotate":      {"60 s"},
		"metrics":     {"prometheus"},
	} {
		out, code := m.CLI(t, m.RootToken, "path-help", m.At+"/"+path)
		for _, want := range wants {
			if code != 0 || !strings.Contains(strings.ToLower(out), want) {
				t.Errorf("exit code %d; %q is not in the help of %q:\n%s", code, want, path, out)
			}
		}
	}
}

// TestRotateKeepsYoungToken calls rotate three times in a row, as applications do
// that all see the same 401.
func TestRotateKeepsYoungToken(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	before := m.Token(t, "")
	for range 3 {
		a := m.Write(t, "rotate", nil)
		if a.Status != http.StatusOK || a.Warnings() != "the token is less than 60 seconds old and was not replaced" {
			t.Errorf("%v, want a warning that the token is young", a)
		}
		wantKeys(t, a, "expire_time last_vault_rotation rotation_period scope token_type ttl")
	}
	m.Token(t, "").WantSame(t, before)
	p.WantRequests(t, cred, 1)
}
