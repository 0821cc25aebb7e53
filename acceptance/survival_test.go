//go:build acceptance

package acceptance

import (
	"net/http"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestTokenSurvives puts a server and its plugin through all that ends a
// process: the same token goes on, and Autopay is asked for nothing.
func TestTokenSurvives(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	m := enableAt(t, s, "autopay")
	p := startProvider(t)
	cred, oslo := p.newCredential(), p.newCredential()
	m.mustWrite(t, "config", cred.config())
	m.mustWrite(t, "config/oslo", oslo.config("rotation_period", "2h"))
	config, want, wantOslo := m.read(t, "config").data, m.token(t, ""), m.token(t, "oslo")

	for _, event := range []struct {
		name   string
		happen func()
	}{
		{"reload", func() { m.reload(t) }},
		{"kill -9 of the plugin", func() { m.killPlugin(t) }},
		{"seal and unseal", func() { s.seal(t); s.mustUnseal(t) }},
		{"restart of the server", func() { s.restart(t, syscall.SIGTERM) }},
		{"kill -9 of the server", func() { s.restart(t, syscall.SIGKILL) }},
	} {
		event.happen()
		t.Run("after "+event.name, func(t *testing.T) {
			for name, old := range map[string]bearer{"": want, "oslo": wantOslo} {
				now := m.token(t, name)
				if now.AccessToken != old.AccessToken {
					t.Errorf("%q: another token is served", name)
				}
				if now.ExpireTime != old.ExpireTime || now.LastVaultRotation != old.LastVaultRotation || now.RotationPeriod != old.RotationPeriod {
					t.Errorf("%q: now %+v, was %+v", name, now, old)
				}
			}
			if now := m.read(t, "config").data; now["client_id"] != config["client_id"] {
				t.Errorf("config is now %v", now)
			}
			if state := m.read(t, "status").data["state"]; state != "ok" {
				t.Errorf("state %v, want ok", state)
			}
			p.asked(t, cred, 1)
			p.asked(t, oslo, 1)
		})
	}
}

// reload restarts the plugin of the mount by Vault's API.
func (m mount) reload(t *testing.T) {
	t.Helper()
	before := m.pluginPIDs(t)
	if _, err := m.root().Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{m.at + "/"}}); err != nil {
		t.Fatalf("reload: %v", err)
	}
	if now := m.pluginPIDs(t); slices.Equal(now, before) {
		t.Errorf("the plugin's processes are %v, as before the reload", now)
	}
}

// killPlugin kills the server's plugin processes and waits until Vault has
// noticed: requests until then fail on the dead connection. The first one after
// that starts the plugin again.
func (m mount) killPlugin(t *testing.T) {
	t.Helper()
	pids := m.pluginPIDs(t)
	if len(pids) == 0 {
		t.Fatal("no plugin process to kill")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 10*time.Second, "the plugin does not come back", func() bool {
		alive := slices.ContainsFunc(m.pluginPIDs(t), func(pid int) bool { return slices.Contains(pids, pid) })
		return !alive && m.read(t, "config").status == http.StatusOK
	})
}

// TestDeadTokenIsNotRevived keeps a server sealed while its token expires: the
// first read after that gets a new one.
func TestDeadTokenIsNotRevived(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	m := enableAt(t, s, "autopay")
	p := startProvider(t)
	p.SetLifetime(8 * time.Second)
	cred := p.newCredential()
	m.mustWrite(t, "config", cred.config())
	old := m.token(t, "")

	s.seal(t)
	eventually(t, 15*time.Second, "the token does not expire", func() bool { return !p.Valid(old.AccessToken) })
	s.mustUnseal(t)
	if now := m.token(t, ""); now.AccessToken == old.AccessToken || !p.accepts(t, now.AccessToken) {
		t.Errorf("a dead token is served: %+v", now)
	}
	p.asked(t, cred, 2)
}

// TestKilledWhileProving loses the plugin between the request of a config write
// and Autopay's answer: the old credential and token go on, and the request is
// in the ledger.
func TestKilledWhileProving(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	m := enableAt(t, s, "autopay")
	p := startProvider(t)
	cred := p.newCredential()
	m.mustWrite(t, "config", cred.config())
	old := m.note(t, p, cred)

	next := p.newCredential()
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
	written := make(chan answer, 1)
	go func() {
		a, err := m.call(t.Context(), m.keys.root, http.MethodPut, m.at+"/config", next.config())
		if err != nil {
			t.Error(err)
		}
		written <- a
	}()
	eventually(t, 5*time.Second, "no request leaves", func() bool { return p.Requests(next.id) == 1 })
	m.killPlugin(t)
	// Vault answers 500, or sends the write again to the plugin's next process, where it times out.
	a := <-written
	used, legal := map[int]int64{http.StatusInternalServerError: 2, http.StatusServiceUnavailable: 3}[a.status]
	if !legal {
		t.Errorf("the write: %v, want 500 or 503", a)
	}

	m.wantUnchanged(t, p, cred, old, 0)
	if n := integer(t, m.read(t, "status").data, "token_requests_24h"); n != used {
		t.Errorf("the ledger holds %d requests, want %d", n, used)
	}
	p.SetFault(autopaysim.Fault{})
	m.mustWrite(t, "config", next.config())
	if owner := p.owner(t, m.token(t, "").AccessToken); owner != next.id {
		t.Errorf("the token is %q's", owner)
	}
}

// TestTwoMountsTenNames shows that one process serves them all, each credential
// on its own, and that the end of one mount touches no other.
func TestTwoMountsTenNames(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	p := startProvider(t)
	mounts := []mount{enableAt(t, s, "autopay"), enableAt(t, s, "parking")}
	names := []string{"", "oslo", "bergen", "Trondheim", "stavanger-1", "kristiansand.2", "tromso_3", "bodo", "alesund", "hamar"}

	creds := map[string]credential{}
	tokens := map[string]string{}
	for _, m := range mounts {
		for _, name := range names {
			key := under(m.at, name)
			creds[key] = p.newCredential()
			m.mustWrite(t, configOf(name), creds[key].config())
			tokens[key] = m.token(t, name).AccessToken
		}
	}
	if pids := s.pluginPIDs(t); len(pids) != 1 {
		t.Errorf("plugin processes %v, want one", pids)
	}

	owners := map[string]string{}
	check := func(mounts []mount) {
		t.Helper()
		for _, m := range mounts {
			for _, name := range names {
				key := under(m.at, name)
				if m.token(t, name).AccessToken != tokens[key] {
					t.Errorf("%s serves another token", key)
				}
				if owner, taken := owners[tokens[key]]; taken && owner != key {
					t.Errorf("%s and %s share a token", owner, key)
				}
				owners[tokens[key]] = key
				p.asked(t, creds[key], 1)
			}
		}
	}
	check(mounts)
	mounts[0].reload(t)
	check(mounts)
	mounts[0].killPlugin(t)
	check(mounts)

	if err := s.root().Sys().Unmount("parking"); err != nil {
		t.Fatal(err)
	}
	check(mounts[:1])
	// What comes back at the path knows nothing of what was there.
	again := enableAt(t, s, "parking")
	if a := again.read(t, "token"); a.status != http.StatusBadRequest {
		t.Errorf("token of a new mount: %v, want 400", a)
	}
}
