//go:build acceptance

package acceptance

import (
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// keysOf returns the keys of a JSON object in order.
func keysOf(object map[string]any) string {
	return strings.Join(slices.Sorted(maps.Keys(object)), " ")
}

// integer checks that a value crossed the wire as a JSON number without a
// fraction: consul-template stumbles over anything else.
func integer(t *testing.T, data map[string]any, key string) int64 {
	t.Helper()
	number, ok := data[key].(json.Number)
	n, err := number.Int64()
	if !ok || err != nil {
		t.Errorf("%s is %T %v, want a whole number", key, data[key], data[key])
	}
	return n
}

// TestTokenShape holds the token's answer to its contract, byte for byte where
// consumers depend on it.
func TestTokenShape(t *testing.T) {
	t.Parallel()
	m, _, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	a := m.read(t, "token")
	if a.status != http.StatusOK {
		t.Fatal(a)
	}

	if got, want := keysOf(a.data), "access_token expire_time last_vault_rotation rotation_period scope token_type ttl"; got != want {
		t.Errorf("fields %q, want %q", got, want)
	}
	if a.data["token_type"] != "Bearer" || a.data["scope"] != "customer_club" {
		t.Errorf("token_type %v, scope %v", a.data["token_type"], a.data["scope"])
	}
	period, ttl := integer(t, a.data, "rotation_period"), integer(t, a.data, "ttl")
	if period != 64800 {
		t.Errorf("rotation_period %d, want three quarters of 86400", period)
	}
	if ttl < period-60 || ttl > period {
		t.Errorf("ttl %d of a new token, want at most %d and not much less", ttl, period)
	}
	expires, rotated := timestamp(t, a.data["expire_time"]), timestamp(t, a.data["last_vault_rotation"])
	if life := expires.Sub(rotated); life > 24*time.Hour || life < 24*time.Hour-15*time.Second {
		t.Errorf("expire_time is %v after last_vault_rotation, want 24h", life)
	}
	if since := time.Since(rotated); since < -2*time.Second || since > time.Minute {
		t.Errorf("last_vault_rotation was %v ago", since)
	}

	// No lease, and nothing besides the data.
	if a.fields["lease_id"] != "" || integer(t, a.fields, "lease_duration") != 0 || a.fields["renewable"] != false {
		t.Errorf("a lease: %v", a)
	}
	if a.fields["warnings"] != nil || a.fields["auth"] != nil || a.fields["wrap_info"] != nil {
		t.Errorf("more than data: %v", a)
	}
}

// TestConfigShape reads a config, as created and as changed.
func TestConfigShape(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	a := m.read(t, "config")
	want := map[string]any{
		"client_id":           cred.id,
		"token_url":           cred.tokenURL,
		"audience":            "https://api.autopay.io",
		"rotation_period":     json.Number("0"),
		"request_timeout":     json.Number("10"),
		"ca_cert":             "",
		"token_request_limit": json.Number("100"),
	}
	if !reflect.DeepEqual(a.data, want) {
		t.Errorf("config %v, want %v", a.data, want)
	}

	before := m.token(t, "")
	m.mustWrite(t, "config", pairs("rotation_period", "90m", "request_timeout", 20, "token_request_limit", 7))
	want["rotation_period"], want["request_timeout"], want["token_request_limit"] = json.Number("5400"), json.Number("20"), json.Number("7")
	if a := m.read(t, "config"); !reflect.DeepEqual(a.data, want) {
		t.Errorf("config after an update %v, want %v", a.data, want)
	}
	after := m.token(t, "")
	if after.RotationPeriod != 5400 || after.TTL > 5400 {
		t.Errorf("a new rotation_period does not apply at once: %+v", after)
	}
	if after.AccessToken != before.AccessToken || after.LastVaultRotation != before.LastVaultRotation {
		t.Error("a new rotation_period brought a new token")
	}

	// Never later than 90 % of the lifetime.
	m.mustWrite(t, "config", pairs("rotation_period", "240h"))
	if b := m.token(t, ""); b.RotationPeriod != 77760 {
		t.Errorf("rotation_period %d of a 24 h token, want 77760", b.RotationPeriod)
	}
	// Terraform applies the same again.
	m.mustWrite(t, "config", cred.config())
	if m.token(t, "").AccessToken != before.AccessToken {
		t.Error("the same config again brought a new token")
	}
	p.asked(t, cred, 1)
}

// TestStatusShape reads the health of a name before it is configured, before
// its first token, and with one.
func TestStatusShape(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	if a := m.read(t, "status"); a.status != http.StatusNotFound {
		t.Errorf("status before it is configured: %v, want 404", a)
	}

	m.mustWrite(t, "config", cred.unproved())
	if a := m.read(t, "status"); a.data["state"] != "pending" {
		t.Errorf("status before the first token: %v, want pending", a)
	}
	p.asked(t, cred, 0)

	token := m.token(t, "")
	a := m.read(t, "status")
	if a.data["state"] != "ok" || a.data["expire_time"] != token.ExpireTime || a.data["last_vault_rotation"] != token.LastVaultRotation {
		t.Errorf("status %v of token %+v", a, token)
	}
	if a.data["plugin_version"] != suite.pluginVersion {
		t.Errorf("plugin_version %v, want %s", a.data["plugin_version"], suite.pluginVersion)
	}
	if n := integer(t, a.data, "token_requests_24h"); n != 1 {
		t.Errorf("token_requests_24h %d, want 1", n)
	}
	if n := integer(t, a.data, "token_request_limit"); n != 100 {
		t.Errorf("token_request_limit %d, want 100", n)
	}
	if n := integer(t, a.data, "consecutive_failures"); n != 0 {
		t.Errorf("consecutive_failures %d, want 0", n)
	}
	rotated, next := timestamp(t, token.LastVaultRotation), timestamp(t, a.data["next_rotation"])
	if wait := next.Sub(rotated); wait < 64800*time.Second || wait > 64802*time.Second {
		t.Errorf("next_rotation is %v after last_vault_rotation, want 18h", wait)
	}
	fields := []string{
		"state", "expire_time", "last_vault_rotation", "next_rotation", "last_error", "last_error_time", "consecutive_failures",
		"next_attempt", "token_requests_24h", "token_request_limit", "plugin_version",
	}
	for key := range a.data {
		if !slices.Contains(fields, key) {
			t.Errorf("status has a field %s", key)
		}
	}
}
