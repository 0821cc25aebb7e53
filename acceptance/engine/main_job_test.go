//go:build acceptance

package engine

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestMainJob goes through a credential's whole life with the official client.
func TestMainJob(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	logical := m.Root().Logical()

	if _, err := logical.Write(m.At+"/config", cred.Config()); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		secret, err := logical.Read(m.At + "/token")
		if err != nil || secret == nil {
			t.Fatalf("read of the token: %v, %v", secret, err)
		}
		return fmt.Sprint(secret.Data["access_token"])
	}
	token := read()
	if !p.Accepts(t, token) {
		t.Error("the API does not accept the token")
	}
	if read() != token {
		t.Error("a second read brings another token")
	}
	p.WantRequests(t, cred, 1)

	names, err := logical.List(m.At + "/config")
	if err != nil || names == nil || fmt.Sprint(names.Data["keys"]) != "[default]" {
		t.Errorf("list: %v, %v", names, err)
	}
	status, err := logical.Read(m.At + "/status")
	if err != nil || status == nil || status.Data["state"] != "ok" {
		t.Errorf("status: %v, %v", status, err)
	}

	// Autopay's console gave the operator a new secret.
	next := harness.NewSecret()
	p.SetClient(cred.ID, next)
	if _, err := logical.Write(m.At+"/config", map[string]any{"client_secret": next}); err != nil {
		t.Fatal(err)
	}
	replaced := read()
	if replaced == token {
		t.Error("the token of the old secret is still served")
	}
	if !p.Accepts(t, replaced) {
		t.Error("the API does not accept the token of the new secret")
	}
	p.WantRequests(t, cred, 2)

	if _, err := logical.Delete(m.At + "/config"); err != nil {
		t.Fatal(err)
	}
	if secret, err := logical.Read(m.At + "/token"); err == nil {
		t.Errorf("a token of a deleted credential: %v", secret)
	}
	if config, err := logical.Read(m.At + "/config"); err != nil || config != nil {
		t.Errorf("a deleted config: %v, %v", config, err)
	}
	p.WantRequests(t, cred, 2)
}

// TestMainJobCLI does the same with the vault command.
func TestMainJobCLI(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	vault := func(want int, args ...string) string {
		t.Helper()
		out, code := m.CLI(t, m.RootToken, args...)
		if code != want {
			t.Errorf("vault %v: exit %d, want %d: %s", args, code, want, out)
		}
		return out
	}
	contains := func(out string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in the output:\n%s", want, out)
			}
		}
	}

	contains(vault(2, "read", m.At+"/token"), "Code: 400", "client_id and client_secret to config")
	contains(vault(2, "read", m.At+"/status"), "No value found")

	// The secret is read from a file, to keep it out of the shell's history.
	file := filepath.Join(t.TempDir(), "secret")
	harness.WriteFile(t, file, []byte(cred.Secret), 0o600)
	contains(vault(0, "write", m.At+"/config", "client_id="+cred.ID, "client_secret=@"+file, "token_url="+cred.TokenURL),
		"Success! Data written to: "+m.At+"/config")

	contains(vault(0, "read", m.At+"/token"), "access_token", "expire_time", "rotation_period", "ttl")
	token := vault(0, "read", "-field=access_token", m.At+"/token")
	if !p.Accepts(t, token) {
		t.Errorf("the API does not accept %q", token)
	}
	var parsed struct {
		LeaseID string `json:"lease_id"`
		Data    harness.Token
	}
	if err := json.Unmarshal([]byte(vault(0, "read", "-format=json", m.At+"/token")), &parsed); err != nil {
		t.Error(err)
	}
	if parsed.Data.AccessToken != token || parsed.LeaseID != "" {
		t.Errorf("-format=json reads another answer: %+v", parsed)
	}

	contains(vault(0, "list", m.At+"/config"), "default")
	contains(vault(0, "read", m.At+"/config"), cred.ID, cred.TokenURL)
	contains(vault(0, "read", "-field=state", m.At+"/status"), "ok")
	contains(vault(0, "write", m.At+"/config", "rotation_period=2h"), "Success!")
	contains(vault(0, "read", "-field=rotation_period", m.At+"/token"), "7200")
	contains(vault(0, "write", m.At+"/config", "rotation_perod=2h"), "rotation_perod", "WARNING")
	contains(vault(2, "write", m.At+"/config", "rotation_period=soon"), "Code: 400", "rotation_period")
	p.WantRequests(t, cred, 1)

	contains(vault(0, "delete", m.At+"/config"), "Success!")
	contains(vault(2, "read", m.At+"/token"), "Code: 400")
	contains(vault(0, "delete", m.At+"/config"), "Success!")
}

// TestPathHelp reads the help of the mount and of each path.
func TestPathHelp(t *testing.T) {
	t.Parallel()
	m := harness.Enable(t, harness.SharedVault(t))
	for path, wants := range map[string][]string{
		"": {"config", "token", "status"},
		"config": {
			"client_id", "client_secret", "token_url", "audience", "rotation_period", "request_timeout",
			"ca_cert", "token_request_limit", "verify",
		},
		"config/oslo": {"client_secret"},
		"token":       {"bearer token"},
		"token/oslo":  {"bearer token"},
		"status":      {"health"},
		"rotate":      {"60 s"},
		"metrics":     {"prometheus"},
	} {
		t.Run("help of "+path, func(t *testing.T) {
			t.Parallel()
			out, code := m.CLI(t, m.RootToken, "path-help", m.At+"/"+path)
			if code != 0 || len(out) < 100 {
				t.Fatalf("exit %d: %s", code, out)
			}
			for _, want := range wants {
				if !strings.Contains(strings.ToLower(out), want) {
					t.Errorf("%q is not in the help:\n%s", want, out)
				}
			}
		})
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
		if a.Status != http.StatusOK || !strings.Contains(a.Warnings(), "the token is less than 60 seconds old and was not replaced") {
			t.Errorf("%v, want a warning that the token is young", a)
		}
		if got, want := keysOf(a.Data), "expire_time last_vault_rotation rotation_period scope token_type ttl"; got != want {
			t.Errorf("fields %q, want %q", got, want)
		}
	}
	if m.Token(t, "").AccessToken != before.AccessToken {
		t.Error("a young token was replaced")
	}
	p.WantRequests(t, cred, 1)
}

// TestNames shows that every name is a credential of its own, and that an omitted
// name means default.
func TestNames(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	if a, b := m.Token(t, ""), m.Token(t, "default"); a.AccessToken != b.AccessToken {
		t.Error("token and token/default differ")
	}

	oslo := p.NewCredential()
	m.MustWrite(t, "config/oslo", oslo.Config())
	if m.Token(t, "oslo").AccessToken == m.Token(t, "").AccessToken {
		t.Error("two names share a token")
	}
	keys, _ := m.Do(t, "LIST", "config", nil).Data["keys"].([]any)
	if fmt.Sprint(keys) != "[default oslo]" || !slices.Contains(keys, any("oslo")) {
		t.Errorf("list: %v", keys)
	}

	m.Do(t, http.MethodDelete, "config/default", nil)
	m.Read(t, "token").Want(t, "token after a delete of config/default", http.StatusBadRequest)
	m.Token(t, "oslo")
	p.WantRequests(t, cred, 1)
	p.WantRequests(t, oslo, 1)
}
