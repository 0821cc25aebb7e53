//go:build acceptance

package engine

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestTokenSurvives restarts the server and the plugin in every way there is. The
// same token is served after each, and Autopay is not asked.
func TestTokenSurvives(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred, oslo := p.NewCredential(), p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	m.MustWrite(t, "config/oslo", oslo.Config("rotation_period", "2h"))
	config, want, wantOslo := m.Read(t, "config").Data, m.Token(t, ""), m.Token(t, "oslo")

	for _, event := range []struct {
		name   string
		happen func()
	}{
		{"reload", func() { m.Reload(t) }},
		{"kill -9 of the plugin", func() { m.KillPlugin(t) }},
		{"seal and unseal", func() { s.Seal(t); s.Unseal(t) }},
		{"restart of the server", func() { s.Restart(t, syscall.SIGTERM) }},
		{"kill -9 of the server", func() { s.Restart(t, syscall.SIGKILL) }},
	} {
		event.happen()
		t.Run("after "+event.name, func(t *testing.T) {
			for name, old := range map[string]harness.Token{"": want, "oslo": wantOslo} {
				m.Token(t, name).WantSame(t, old)
			}
			if now := m.Read(t, "config").Data; now["client_id"] != config["client_id"] {
				t.Errorf("config is now %v", now)
			}
			if state := m.Read(t, "status").Data["state"]; state != "ok" {
				t.Errorf("state %v, want ok", state)
			}
			p.WantRequests(t, cred, 1)
			p.WantRequests(t, oslo, 1)
		})
	}
}

// TestDeadTokenIsNotRevived keeps a server sealed while its token expires. The
// first read after the unseal gets a new one.
func TestDeadTokenIsNotRevived(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	p.SetLifetime(8 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	old := m.Token(t, "")

	s.Seal(t)
	harness.Eventually(t, 15*time.Second, "the token does not expire", func() bool { return !p.Valid(old.AccessToken) })
	s.Unseal(t)
	if now := m.Token(t, ""); now.AccessToken == old.AccessToken || !p.Accepts(t, now.AccessToken) {
		t.Errorf("a dead token is served: %+v", now)
	}
	p.WantRequests(t, cred, 2)
}

// TestKilledWhileProving kills the plugin while a config write waits for Autopay's
// answer. The old credential and its token stay in use, and the request is in the
// ledger.
func TestKilledWhileProving(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	old := m.Snapshot(t, p, cred)

	next := p.NewCredential()
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
	written := make(chan harness.Answer, 1)
	go func() {
		a, err := m.Call(t.Context(), m.RootToken, http.MethodPut, m.At+"/config", next.Config())
		if err != nil {
			t.Error(err)
		}
		written <- a
	}()
	harness.Eventually(t, 5*time.Second, "no request leaves", func() bool { return p.Requests(next.ID) == 1 })
	m.KillPlugin(t)
	// Vault answers 500, or sends the write again to the next plugin process, where it times out.
	a := <-written
	used, legal := map[int]int64{http.StatusInternalServerError: 2, http.StatusServiceUnavailable: 3}[a.Status]
	if !legal {
		t.Errorf("the write: %v, want 500 or 503", a)
	}

	m.WantUnchanged(t, p, cred, old, 0)
	if n := harness.Integer(t, m.Read(t, "status").Data, "token_requests_24h"); n != used {
		t.Errorf("the ledger holds %d requests, want %d", n, used)
	}
	p.SetFault(autopaysim.Fault{})
	m.MustWrite(t, "config", next.Config())
	if owner := p.Owner(t, m.Token(t, "").AccessToken); owner != next.ID {
		t.Errorf("the token is %q's", owner)
	}
}

// TestTwoMountsTenNames shows that one process serves two mounts with ten
// credentials each, that credentials don't affect each other, and that disabling
// one mount doesn't affect the other.
func TestTwoMountsTenNames(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	p := harness.StartAutopay(t)
	mounts := []harness.Mount{harness.EnableAt(t, s, "autopay"), harness.EnableAt(t, s, "parking")}
	names := []string{"", "oslo", "bergen", "Trondheim", "stavanger-1", "kristiansand.2", "tromso_3", "bodo", "alesund", "hamar"}

	creds := map[string]harness.Credential{}
	tokens := map[string]string{}
	for _, m := range mounts {
		for _, name := range names {
			key := m.At + "/" + name
			creds[key] = p.NewCredential()
			m.MustWrite(t, harness.ConfigPath(name), creds[key].Config())
			tokens[key] = m.Token(t, name).AccessToken
		}
	}
	if pids := s.PluginPIDs(t); len(pids) != 1 {
		t.Errorf("plugin processes %v, want one", pids)
	}

	owners := map[string]string{}
	check := func(mounts []harness.Mount) {
		t.Helper()
		for _, m := range mounts {
			for _, name := range names {
				key := m.At + "/" + name
				if m.Token(t, name).AccessToken != tokens[key] {
					t.Errorf("%s serves another token", key)
				}
				if owner, taken := owners[tokens[key]]; taken && owner != key {
					t.Errorf("%s and %s share a token", owner, key)
				}
				owners[tokens[key]] = key
				p.WantRequests(t, creds[key], 1)
			}
		}
	}
	check(mounts)
	mounts[0].Reload(t)
	check(mounts)
	mounts[0].KillPlugin(t)
	check(mounts)

	if err := s.Root().Sys().Unmount("parking"); err != nil {
		t.Fatal(err)
	}
	check(mounts[:1])
	// A new mount at the same path knows nothing of the old one.
	again := harness.EnableAt(t, s, "parking")
	again.Read(t, "token").Want(t, "token of a new mount", http.StatusBadRequest)
}
