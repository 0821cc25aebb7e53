//go:build acceptance

package engine

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// keysOf returns the keys of a JSON object in order.
func keysOf(object map[string]any) string {
	return strings.Join(slices.Sorted(maps.Keys(object)), " ")
}

// TestTokenShape checks the exact form of a token's answer, which consumers depend
// on.
func TestTokenShape(t *testing.T) {
	t.Parallel()
	m, _, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	a := m.Read(t, "token")
	if a.Status != http.StatusOK {
		t.Fatal(a)
	}

	if got, want := keysOf(a.Data), "access_token expire_time last_vault_rotation rotation_period scope token_type ttl"; got != want {
		t.Errorf("fields %q, want %q", got, want)
	}
	if a.Data["token_type"] != "Bearer" || a.Data["scope"] != "customer_club" {
		t.Errorf("token_type %v, scope %v", a.Data["token_type"], a.Data["scope"])
	}
	period, ttl := harness.Integer(t, a.Data, "rotation_period"), harness.Integer(t, a.Data, "ttl")
	if period != 64800 {
		t.Errorf("rotation_period %d, want three quarters of 86400", period)
	}
	if ttl < period-60 || ttl > period {
		t.Errorf("ttl %d of a new token, want at most %d and not much less", ttl, period)
	}
	expires, rotated := harness.Timestamp(t, a.Data["expire_time"]), harness.Timestamp(t, a.Data["last_vault_rotation"])
	if life := expires.Sub(rotated); life > 24*time.Hour || life < 24*time.Hour-15*time.Second {
		t.Errorf("expire_time is %v after last_vault_rotation, want 24h", life)
	}
	if since := time.Since(rotated); since < -2*time.Second || since > time.Minute {
		t.Errorf("last_vault_rotation was %v ago", since)
	}

	// No lease, and nothing besides the data.
	if a.Fields["lease_id"] != "" || harness.Integer(t, a.Fields, "lease_duration") != 0 || a.Fields["renewable"] != false {
		t.Errorf("a lease: %v", a)
	}
	if a.Fields["warnings"] != nil || a.Fields["auth"] != nil || a.Fields["wrap_info"] != nil {
		t.Errorf("more than data: %v", a)
	}
}

// TestConfigShape reads a config after it was created and after each update.
func TestConfigShape(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	a := m.Read(t, "config")
	want := map[string]any{
		"client_id":           cred.ID,
		"token_url":           cred.TokenURL,
		"audience":            "https://api.autopay.io",
		"rotation_period":     json.Number("0"),
		"rotation_schedule":   "",
		"request_timeout":     json.Number("10"),
		"ca_cert":             "",
		"token_request_limit": json.Number("100"),

		"client_secret_updated_time": a.Data["client_secret_updated_time"],
	}
	updated, err := time.Parse("2006-01-02T15:04:05Z", fmt.Sprint(a.Data["client_secret_updated_time"]))
	if err != nil || time.Since(updated).Abs() > time.Minute {
		t.Errorf("client_secret_updated_time is %v, want now", a.Data["client_secret_updated_time"])
	}
	if !reflect.DeepEqual(a.Data, want) {
		t.Errorf("config %v, want %v", a.Data, want)
	}

	before := m.Token(t, "")
	m.MustWrite(t, "config", harness.Fields("rotation_period", "90m", "request_timeout", 20, "token_request_limit", 7))
	want["rotation_period"], want["request_timeout"], want["token_request_limit"] = json.Number("5400"), json.Number("20"), json.Number("7")
	if a := m.Read(t, "config"); !reflect.DeepEqual(a.Data, want) {
		t.Errorf("config after an update %v, want %v", a.Data, want)
	}
	after := m.Token(t, "")
	if after.RotationPeriod != 5400 || after.TTL > 5400 {
		t.Errorf("a new rotation_period does not apply at once: %+v", after)
	}
	if after.AccessToken != before.AccessToken || after.LastVaultRotation != before.LastVaultRotation {
		t.Error("a new rotation_period brought a new token")
	}

	// Never later than 90 % of the lifetime.
	m.MustWrite(t, "config", harness.Fields("rotation_period", "240h"))
	if b := m.Token(t, ""); b.RotationPeriod != 77760 {
		t.Errorf("rotation_period %d of a 24 h token, want 77760", b.RotationPeriod)
	}
	// Terraform applies the same again.
	m.MustWrite(t, "config", cred.Config())
	if m.Token(t, "").AccessToken != before.AccessToken {
		t.Error("the same config again brought a new token")
	}
	p.WantRequests(t, cred, 1)
}

// TestStatusShape reads the status of a name before it is configured, before its
// first token, and with a token.
func TestStatusShape(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.Read(t, "status").Want(t, "status before it is configured", http.StatusNotFound)

	m.MustWrite(t, "config", cred.Unverified())
	if a := m.Read(t, "status"); a.Data["state"] != "pending" {
		t.Errorf("status before the first token: %v, want pending", a)
	}
	p.WantRequests(t, cred, 0)

	token := m.Token(t, "")
	a := m.Read(t, "status")
	if a.Data["state"] != "ok" || a.Data["expire_time"] != token.ExpireTime || a.Data["last_vault_rotation"] != token.LastVaultRotation {
		t.Errorf("status %v of token %+v", a, token)
	}
	if a.Data["plugin_version"] != harness.PluginVersion {
		t.Errorf("plugin_version %v, want %s", a.Data["plugin_version"], harness.PluginVersion)
	}
	if n := harness.Integer(t, a.Data, "token_requests_24h"); n != 1 {
		t.Errorf("token_requests_24h %d, want 1", n)
	}
	if n := harness.Integer(t, a.Data, "token_request_limit"); n != 100 {
		t.Errorf("token_request_limit %d, want 100", n)
	}
	if n := harness.Integer(t, a.Data, "consecutive_failures"); n != 0 {
		t.Errorf("consecutive_failures %d, want 0", n)
	}
	rotated, next := harness.Timestamp(t, token.LastVaultRotation), harness.Timestamp(t, a.Data["next_rotation"])
	if wait := next.Sub(rotated); wait < 64800*time.Second || wait > 64802*time.Second {
		t.Errorf("next_rotation is %v after last_vault_rotation, want 18h", wait)
	}
	fields := []string{
		"state", "expire_time", "last_vault_rotation", "next_rotation", "next_rotation_reason", "last_error", "last_error_time", "consecutive_failures",
		"next_attempt", "token_requests_24h", "token_request_limit", "plugin_version",
	}
	for key := range a.Data {
		if !slices.Contains(fields, key) {
			t.Errorf("status has a field %s", key)
		}
	}
}

// TestListPages lists the names a page at a time, as OpenBao's clients do, and with
// the health of each, as vault list -detailed does.
func TestListPages(t *testing.T) {
	t.Parallel()
	m, _, cred := harness.Setup(t)
	for _, name := range []string{"bergen", "oslo", "tromso"} {
		config := cred.Config()
		config["verify"] = false
		m.MustWrite(t, "config/"+name, config)
	}
	for query, want := range map[string]string{
		"":                    "[bergen oslo tromso]",
		"?limit=2":            "[bergen oslo]",
		"?limit=2&after=oslo": "[tromso]",
		"?after=bergen":       "[oslo tromso]",
	} {
		if got := fmt.Sprint(m.Do(t, "LIST", "config"+query, nil).Data["keys"]); got != want {
			t.Errorf("LIST config%s: %s, want %s", query, got, want)
		}
	}
	if a := m.Do(t, "LIST", "config?after=tromso", nil); a.Status != http.StatusNotFound {
		t.Errorf("a page after the last name: %d, want a 404, which ends a client's paging", a.Status)
	}

	expires := m.Token(t, "oslo").ExpireTime
	out, code := m.CLI(t, m.RootToken, "list", "-detailed", m.At+"/config")
	if got := strings.Fields(out); code != 0 || !slices.Equal(got, []string{
		"Keys", "expire_time", "state", "----", "-----------", "-----",
		"bergen", "n/a", "pending", "oslo", expires, "ok", "tromso", "n/a", "pending",
	}) {
		t.Errorf("vault list -detailed: exit code %d\n%s", code, out)
	}
}
