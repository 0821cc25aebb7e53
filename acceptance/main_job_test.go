//go:build acceptance

package acceptance

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMainJob goes through a credential's whole life with the official client.
func TestMainJob(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	logical := m.root().Logical()

	if _, err := logical.Write(m.at+"/config", cred.config()); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		secret, err := logical.Read(m.at + "/token")
		if err != nil || secret == nil {
			t.Fatalf("read of the token: %v, %v", secret, err)
		}
		return fmt.Sprint(secret.Data["access_token"])
	}
	token := read()
	if !p.accepts(t, token) {
		t.Error("the API does not accept the token")
	}
	if read() != token {
		t.Error("a second read brings another token")
	}
	p.asked(t, cred, 1)

	names, err := logical.List(m.at + "/config")
	if err != nil || names == nil || fmt.Sprint(names.Data["keys"]) != "[default]" {
		t.Errorf("list: %v, %v", names, err)
	}
	status, err := logical.Read(m.at + "/status")
	if err != nil || status == nil || status.Data["state"] != "ok" {
		t.Errorf("status: %v, %v", status, err)
	}

	// Autopay's console gave the operator a new secret.
	next := newSecret()
	p.SetClient(cred.id, next)
	if _, err := logical.Write(m.at+"/config", map[string]any{"client_secret": next}); err != nil {
		t.Fatal(err)
	}
	replaced := read()
	if replaced == token {
		t.Error("the token of the old secret is still served")
	}
	if !p.accepts(t, replaced) {
		t.Error("the API does not accept the token of the new secret")
	}
	p.asked(t, cred, 2)

	if _, err := logical.Delete(m.at + "/config"); err != nil {
		t.Fatal(err)
	}
	if secret, err := logical.Read(m.at + "/token"); err == nil {
		t.Errorf("a token of a deleted credential: %v", secret)
	}
	if config, err := logical.Read(m.at + "/config"); err != nil || config != nil {
		t.Errorf("a deleted config: %v, %v", config, err)
	}
	p.asked(t, cred, 2)
}

// TestMainJobCLI does the same as the vault command's users do.
func TestMainJobCLI(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	vault := func(want int, args ...string) string {
		t.Helper()
		out, code := m.cli(t, m.keys.root, args...)
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

	contains(vault(2, "read", m.at+"/token"), "Code: 400", m.at+"/config")
	contains(vault(2, "read", m.at+"/status"), "No value found")

	// A secret comes from a file or standard input, or it is in the shell's history.
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(cred.secret), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(vault(0, "write", m.at+"/config", "client_id="+cred.id, "client_secret=@"+file, "token_url="+cred.tokenURL),
		"Success! Data written to: "+m.at+"/config")

	contains(vault(0, "read", m.at+"/token"), "access_token", "expire_time", "rotation_period", "ttl")
	token := vault(0, "read", "-field=access_token", m.at+"/token")
	if !p.accepts(t, token) {
		t.Errorf("the API does not accept %q", token)
	}
	var parsed struct {
		LeaseID string `json:"lease_id"`
		Data    bearer
	}
	if err := json.Unmarshal([]byte(vault(0, "read", "-format=json", m.at+"/token")), &parsed); err != nil {
		t.Error(err)
	}
	if parsed.Data.AccessToken != token || parsed.LeaseID != "" {
		t.Errorf("-format=json reads another answer: %+v", parsed)
	}

	contains(vault(0, "list", m.at+"/config"), "default")
	contains(vault(0, "read", m.at+"/config"), cred.id, cred.tokenURL)
	contains(vault(0, "read", "-field=state", m.at+"/status"), "ok")
	contains(vault(0, "write", m.at+"/config", "rotation_period=2h"), "Success!")
	contains(vault(0, "read", "-field=rotation_period", m.at+"/token"), "7200")
	contains(vault(0, "write", m.at+"/config", "rotation_perod=2h"), "rotation_perod", "WARNING")
	contains(vault(2, "write", m.at+"/config", "rotation_period=soon"), "Code: 400", "rotation_period")
	p.asked(t, cred, 1)

	contains(vault(0, "delete", m.at+"/config"), "Success!")
	contains(vault(2, "read", m.at+"/token"), "Code: 400")
	contains(vault(0, "delete", m.at+"/config"), "Success!")
}

// TestPathHelp asks for the help of each path, and for that of the mount.
func TestPathHelp(t *testing.T) {
	t.Parallel()
	m := enable(t, sharedVault(t))
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
			out, code := m.cli(t, m.keys.root, "path-help", m.at+"/"+path)
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

// TestRotateKeepsYoungToken is for a hundred apps that see the same 401.
func TestRotateKeepsYoungToken(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	before := m.token(t, "")
	for range 3 {
		a := m.write(t, "rotate", nil)
		if a.status != http.StatusOK || !strings.Contains(a.warnings(), "60 s") {
			t.Errorf("%v, want a warning that the token is young", a)
		}
		if got, want := keysOf(a.data), "expire_time last_vault_rotation rotation_period scope token_type ttl"; got != want {
			t.Errorf("fields %q, want %q", got, want)
		}
	}
	if m.token(t, "").AccessToken != before.AccessToken {
		t.Error("a young token was replaced")
	}
	p.asked(t, cred, 1)
}

// TestNames shows that every name is a credential of its own, and that no name
// is the name default.
func TestNames(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	if a, b := m.token(t, ""), m.token(t, "default"); a.AccessToken != b.AccessToken {
		t.Error("token and token/default differ")
	}

	oslo := p.newCredential()
	m.mustWrite(t, "config/oslo", oslo.config())
	if m.token(t, "oslo").AccessToken == m.token(t, "").AccessToken {
		t.Error("two names share a token")
	}
	keys, _ := m.do(t, "LIST", "config", nil).data["keys"].([]any)
	if fmt.Sprint(keys) != "[default oslo]" || !slices.Contains(keys, any("oslo")) {
		t.Errorf("list: %v", keys)
	}

	m.do(t, http.MethodDelete, "config/default", nil)
	if a := m.read(t, "token"); a.status != http.StatusBadRequest {
		t.Errorf("token after a delete of config/default: %v", a)
	}
	m.token(t, "oslo")
	p.asked(t, cred, 1)
	p.asked(t, oslo, 1)
}
