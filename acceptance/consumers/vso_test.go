//go:build acceptance

package consumers

import (
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// vsoRules are what Vault Secrets Operator requires of an answer when
// allowStaticCreds is set. The functions named are in
// github.com/hashicorp/vault-secrets-operator,
// controllers/vaultdynamicsecret_controller.go at 01360aadeb67, which is after 1.2
// and before 1.4.0.
var vsoRules = []struct {
	name  string
	keeps func(harness.Answer) bool
}{
	// Reconcile, isRenewableLease: a lease would be renewed and the rest ignored.
	{"no lease, not renewable", func(a harness.Answer) bool { return a.Fields["lease_id"] == "" && a.Fields["renewable"] == false }},
	// vaultStaticCredsMetaDataFromData: anything but a string is a panic there.
	{"last_vault_rotation is a string in RFC 3339", func(a harness.Answer) bool {
		text, ok := a.Data["last_vault_rotation"].(string)
		at, err := time.Parse(time.RFC3339Nano, text)
		return ok && err == nil && at.Unix() > 0
	}},
	// The same; isStaticCreds: at least 1, or the secret is never read again.
	{"rotation_period is a whole number, at least 1", func(a harness.Answer) bool { n, ok := wholeNumber(a.Data["rotation_period"]); return ok && n >= 1 }},
	// The same; computePostSyncHorizon: at 0 it reads every second.
	{"ttl is a whole number, at least 1", func(a harness.Answer) bool { n, ok := wholeNumber(a.Data["ttl"]); return ok && n >= 1 }},
	// awaitVaultSecretRotation: with it, a growing ttl is treated as an error.
	{"no rotation_schedule", func(a harness.Answer) bool { _, there := a.Data["rotation_schedule"]; return !there }},
}

func wholeNumber(v any) (int64, bool) {
	number, _ := v.(json.Number)
	n, err := number.Int64()
	return n, err == nil
}

// vsoIgnored are the fields that may change without a rollout (staticTransOpt). A
// change of any other field rolls the deployment.
var vsoIgnored = regexp.MustCompile(`^ttl|rotation_schedule|rotation_period|last_vault_rotation|_raw$`)

// vsoMAC returns what the operator compares to detect that the secret has changed.
func vsoMAC(data map[string]any) map[string]any {
	counts := maps.Clone(data)
	maps.DeleteFunc(counts, func(key string, _ any) bool { return vsoIgnored.MatchString(key) })
	return counts
}

// TestOnlyTTLMoves reads one token in every state that it can be in. Only ttl may
// differ between the reads. The next token differs in the fields that identify it.
func TestOnlyTTLMoves(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m, p := harness.EnableAt(t, s, "autopay"), harness.StartAutopay(t)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", 30))
	first := m.Read(t, "token").Data
	rotated := harness.Timestamp(t, first["last_vault_rotation"])
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang}) // whatever falls due when

	ttlIs := func(least, most int64) func() bool {
		return func() bool { n := harness.Integer(t, m.Read(t, "token").Data, "ttl"); return n >= least && n <= most }
	}
	fails := func(mark string) func() bool {
		return func() bool {
			a := m.Read(t, "status")
			said, _ := a.Data["last_error"].(string)
			return a.Data["state"] == "degraded" && regexp.MustCompile(mark).MatchString(said)
		}
	}
	for _, state := range []struct {
		name    string
		happens func()
		reached func() bool // nil: at once
		warns   bool
	}{
		{"fresh", func() {}, nil, false},
		{"older", func() {}, ttlIs(5, harness.Integer(t, first, "ttl")-1), false},
		{"after a reload", func() { m.Reload(t) }, nil, false},
		{"after a kill -9 of the plugin", func() { m.KillPlugin(t) }, nil, false},
		{"after a restart of the server", func() { s.Restart(t, syscall.SIGTERM) }, nil, false},
		{"due, Autopay takes its time", func() {}, func() bool { return p.Requests(cred.ID) > 1 && ttlIs(5, 5)() }, false},
		{"overdue in an outage", func() { p.SetFault(harness.Down) }, fails("503"), true},
		{"overdue, the credential refused", func() {
			p.SetFault(harness.Answers(http.StatusUnauthorized))
		}, fails("refused"), true},
		{"after a rotate that brought nothing", func() { m.Write(t, "rotate", nil) }, nil, true},
		{"after a reload in the outage", func() { m.Reload(t) }, nil, true},
	} {
		t.Run(state.name, func(t *testing.T) {
			state.happens()
			if state.reached != nil {
				harness.Eventually(t, time.Minute, "the state is not reached", state.reached)
			}
			a := m.Read(t, "token")
			if warns := a.Warnings() != ""; a.Status != http.StatusOK || warns != state.warns {
				t.Fatalf("%v, want a warning: %v", a, state.warns)
			}
			vsoKept(t, a)
			if !reflect.DeepEqual(vsoMAC(a.Data), vsoMAC(first)) {
				t.Errorf("the operator would roll the deployment: %v, then %v", first, a.Data)
			}
			now := maps.Clone(a.Data)
			now["ttl"] = first["ttl"]
			if !reflect.DeepEqual(now, first) {
				t.Errorf("more than ttl moved: %v, then %v", first, now)
			}
		})
	}
	if p.Issued(cred.ID) != 1 {
		t.Fatalf("%d tokens, want the first alone", p.Issued(cred.ID))
	}

	t.Run("after a rotate", func(t *testing.T) {
		harness.Eventually(t, 2*time.Minute, "the token stays too young", func() bool { return time.Since(rotated) > 61*time.Second })
		p.SetFault(autopaysim.Fault{})
		harness.Eventually(t, 20*time.Second, "no new token", func() bool {
			return m.Write(t, "rotate", nil).Status == http.StatusOK && p.Issued(cred.ID) == 2
		})
		a := m.Read(t, "token")
		vsoKept(t, a)
		if reflect.DeepEqual(vsoMAC(a.Data), vsoMAC(first)) {
			t.Error("the operator would not notice the new token")
		}
		for _, key := range []string{"access_token", "last_vault_rotation", "expire_time"} {
			if a.Data[key] == first[key] {
				t.Errorf("%s is the old token's", key)
			}
		}
		for _, key := range []string{"rotation_period", "scope", "token_type"} {
			if a.Data[key] != first[key] {
				t.Errorf("%s is %v, was %v", key, a.Data[key], first[key])
			}
		}
	})
}

// vsoKept fails the test for each rule that an answer breaks.
func vsoKept(t *testing.T, a harness.Answer) {
	t.Helper()
	for _, rule := range vsoRules {
		if !rule.keeps(a) {
			t.Errorf("%s: broken by %v", rule.name, a)
		}
	}
}
