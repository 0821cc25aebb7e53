//go:build acceptance

package consumers

import (
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"strings"
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
// and before 1.4.0. It rolls the deployment when a field other than ttl,
// rotation_period and last_vault_rotation changes (staticTransOpt).
func vsoRules(t *testing.T, a harness.Answer) {
	t.Helper()
	// Reconcile, isRenewableLease: a lease would be renewed and the rest ignored.
	if a.Fields["lease_id"] != "" || a.Fields["renewable"] != false {
		t.Errorf("a lease: %v", a)
	}
	// vaultStaticCredsMetaDataFromData: anything but a string is a panic there.
	harness.Timestamp(t, a.Data["last_vault_rotation"])
	// The same; isStaticCreds: at least 1, or the secret is never read again.
	if n := harness.Integer(t, a.Data, "rotation_period"); n < 1 {
		t.Errorf("rotation_period %d, want at least 1", n)
	}
	// The same; computePostSyncHorizon: at 0 it reads every second.
	if n := harness.Integer(t, a.Data, "ttl"); n < 1 {
		t.Errorf("ttl %d, want at least 1", n)
	}
	// awaitVaultSecretRotation: with it, a growing ttl is treated as an error.
	if schedule, there := a.Data["rotation_schedule"]; there {
		t.Errorf("rotation_schedule %v, want none", schedule)
	}
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

	ttl := func() int64 { return harness.Integer(t, m.Read(t, "token").Data, "ttl") }
	fails := func(text string) bool {
		a := m.Read(t, "status")
		return a.Data["state"] == "degraded" && strings.Contains(fmt.Sprint(a.Data["last_error"]), text)
	}
	nothing, atOnce := func() {}, func() bool { return true }
	for _, state := range []struct {
		name    string
		happens func()
		reached func() bool
		warns   bool
	}{
		{"fresh", nothing, atOnce, false},
		{"older", nothing, func() bool { return ttl() < harness.Integer(t, first, "ttl") }, false},
		{"after a reload", func() { m.Reload(t) }, atOnce, false},
		{"after a kill -9 of the plugin", func() { m.KillPlugin(t) }, atOnce, false},
		{"after a restart of the server", func() { s.Restart(t, syscall.SIGTERM) }, atOnce, false},
		{"due, Autopay takes its time", nothing, func() bool { return p.Requests(cred.ID) > 1 && ttl() == 5 }, false},
		{"an outage", func() { p.SetFault(harness.Down) }, func() bool { return fails("503") }, true},
		{"a refusal", func() { p.SetFault(harness.Answers(401)) }, func() bool { return fails("refused") }, true},
		{"after a rotate that brought nothing", func() { m.Write(t, "rotate", nil) }, atOnce, true},
		{"after a reload in the outage", func() { m.Reload(t) }, atOnce, true},
	} {
		t.Run(state.name, func(t *testing.T) {
			state.happens()
			harness.Eventually(t, time.Minute, "the state is not reached", state.reached)
			a := m.Read(t, "token")
			if warns := a.Warnings() != ""; a.Status != http.StatusOK || warns != state.warns {
				t.Fatalf("%v, want a warning: %v", a, state.warns)
			}
			vsoRules(t, a)
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
		harness.Eventually(t, 2*time.Minute, "the token stays young", func() bool {
			return time.Since(rotated) > 61*time.Second
		})
		p.SetFault(autopaysim.Fault{})
		harness.Eventually(t, 20*time.Second, "no new token", func() bool {
			return m.Write(t, "rotate", nil).Status == http.StatusOK && p.Issued(cred.ID) == 2
		})
		a := m.Read(t, "token")
		vsoRules(t, a)
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
