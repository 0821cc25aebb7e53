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

// wantKeys checks the keys of an answer's data, in order.
func wantKeys(t *testing.T, a harness.Answer, want string) {
	t.Helper()
	if got := strings.Join(slices.Sorted(maps.Keys(a.Data)), " "); got != want {
		t.Errorf("fields %q, want %q", got, want)
	}
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
	wantKeys(t, a, "access_token expire_time last_vault_rotation rotation_period scope token_type ttl")
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
	duration := harness.Integer(t, a.Fields, "lease_duration")
	if a.Fields["lease_id"] != "" || duration != 0 || a.Fields["renewable"] != false {
		t.Errorf("a lease: %v", a)
	}
	if a.Fields["warnings"] != nil || a.Fields["auth"] != nil || a.Fields["wrap_info"] != nil {
		t.Errorf("more than data: %v", a)
	}
	if leases, err := m.Root().Logical().List("sys/leases/lookup/" + m.At + "/"); err != nil || leases != nil {
		t.Errorf("leases: %v, %v", leases, err)
	}
}

// TestConfigShape reads a config after it was created and after an update.
func TestConfigShape(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	got := m.Read(t, "config").Data
	if since := time.Since(harness.Timestamp(t, got["client_secret_updated_time"])).Abs(); since > time.Minute {
		t.Errorf("client_secret_updated_time was %v ago, want now", since)
	}
	want := map[string]any{
		"client_id": cred.ID, "token_url": cred.TokenURL, "audience": "https://api.autopay.io", "ca_cert": "",
		"rotation_period": json.Number("0"), "rotation_schedule": "", "request_timeout": json.Number("10"),
		"token_request_limit": json.Number("100"), "client_secret_updated_time": got["client_secret_updated_time"],
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("config %v, want %v", got, want)
	}

	before := m.Token(t, "")
	m.MustWrite(t, "config", harness.Fields("rotation_period", "90m", "request_timeout", 20))
	want["rotation_period"], want["request_timeout"] = json.Number("5400"), json.Number("20")
	if got := m.Read(t, "config").Data; !reflect.DeepEqual(got, want) {
		t.Errorf("config after an update %v, want %v", got, want)
	}
	after := m.Token(t, "")
	if after.RotationPeriod != 5400 || after.TTL > 5400 {
		t.Errorf("a new rotation_period does not apply at once: %+v", after)
	}
	m.MustWrite(t, "config", cred.Config("rotation_period", json.Number("0"))) // as Terraform applies it again
	m.Token(t, "").WantSame(t, before)
	p.WantRequests(t, cred, 1)
}

// TestStatusShape reads the status of a name before its first token, and with a
// token.
func TestStatusShape(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Unverified())
	want := map[string]any{
		"state": "pending", "expire_time": nil, "last_vault_rotation": nil, "next_rotation": nil,
		"next_rotation_reason": "", "last_error": "", "last_error_time": nil, "next_attempt": nil,
		"consecutive_failures": json.Number("0"), "token_requests_24h": json.Number("0"),
		"token_request_limit": json.Number("100"), "plugin_version": harness.PluginVersion,
	}
	if got := m.Read(t, "status").Data; !reflect.DeepEqual(got, want) {
		t.Errorf("status before the first token: %v, want %v", got, want)
	}
	p.WantRequests(t, cred, 0)

	token := m.Token(t, "")
	got := m.Read(t, "status").Data
	rotated, next := harness.Timestamp(t, token.LastVaultRotation), harness.Timestamp(t, got["next_rotation"])
	if wait := next.Sub(rotated); wait < 64800*time.Second || wait > 64802*time.Second {
		t.Errorf("next_rotation is %v after last_vault_rotation, want 18h", wait)
	}
	maps.Copy(want, map[string]any{
		"state": "ok", "expire_time": token.ExpireTime, "last_vault_rotation": token.LastVaultRotation,
		"next_rotation": got["next_rotation"], "next_rotation_reason": "lifetime",
		"token_requests_24h": json.Number("1"),
	})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("status %v, want %v", got, want)
	}
}

// TestNames shows that an omitted name means default. It lists the names a page at a time, as OpenBao's clients do, and
// with the health of each, as vault list -detailed does.
func TestNames(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	for _, name := range []string{"", "/bergen", "/oslo"} {
		m.MustWrite(t, "config"+name, cred.Unverified())
	}
	for query, want := range map[string]string{
		"":                    "[bergen default oslo]",
		"?limit=2":            "[bergen default]",
		"?limit=2&after=oslo": "<nil>", // a 404 ends a client's paging
		"?after=bergen":       "[default oslo]",
	} {
		if got := fmt.Sprint(m.Do(t, "LIST", "config"+query, nil).Data["keys"]); got != want {
			t.Errorf("LIST config%s: %s, want %s", query, got, want)
		}
	}

	token := m.Token(t, "")
	m.Token(t, "default").WantSame(t, token)
	p.WantRequests(t, cred, 1)
	out, code := m.CLI(t, m.RootToken, "list", "-detailed", m.At+"/config")
	if got := strings.Fields(out); code != 0 || !slices.Equal(got, []string{
		"Keys", "expire_time", "state", "----", "-----------", "-----",
		"bergen", "n/a", "pending", "default", token.ExpireTime, "ok", "oslo", "n/a", "pending",
	}) {
		t.Errorf("vault list -detailed: exit code %d\n%s", code, out)
	}

	m.Do(t, http.MethodDelete, "config/default", nil)
	m.Read(t, "token").Want(t, "token after a delete of config/default", http.StatusBadRequest)
	m.Token(t, "oslo")
}
