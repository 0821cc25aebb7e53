//go:build acceptance

package engine

import (
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestTokenSurvives restarts the server and the plugin in every way there is, upgrades the plugin to another version
// and downgrades it again. The same token is served after each, and Autopay is not asked.
func TestTokenSurvives(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred, oslo := p.NewCredential(), p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	m.MustWrite(t, "config/oslo", oslo.Config("rotation_period", "2h"))
	old, wantOslo := m.Snapshot(t, p, cred), m.Token(t, "oslo")

	file := harness.PluginName + "-" + harness.NextVersion
	sha := harness.CopyNextVersion(t, filepath.Join(harness.PluginDir, file))
	if err := s.Register(file, sha, harness.NextVersion); err != nil {
		t.Fatal(err)
	}
	upgrade := func(version string) {
		_, err := s.Root().Logical().Write("sys/mounts/autopay/tune", map[string]any{"plugin_version": version})
		if err != nil {
			t.Fatal(err)
		}
		m.Reload(t)
	}
	version := harness.PluginVersion
	for _, event := range []struct {
		name   string
		happen func()
	}{
		{"reload", func() { m.Reload(t) }},
		{"kill -9 of the plugin", func() { m.KillPlugin(t) }},
		{"seal and unseal", func() { s.Seal(t); s.Unseal(t) }},
		{"restart of the server", func() { s.Restart(t, syscall.SIGTERM) }},
		{"kill -9 of the server", func() { s.Restart(t, syscall.SIGKILL) }},
		{"upgrade", func() { version = harness.NextVersion; upgrade(version) }},
		{"downgrade", func() { version = harness.PluginVersion; upgrade(version) }},
	} {
		event.happen()
		t.Run("after "+event.name, func(t *testing.T) {
			m.WantUnchanged(t, p, cred, old, 0)
			m.Token(t, "oslo").WantSame(t, wantOslo)
			p.WantRequests(t, oslo, 1)
			if a := m.Read(t, "status"); a.Data["state"] != "ok" || a.Data["plugin_version"] != version {
				t.Errorf("status %v, want ok and version %s", a, version)
			}
			mounts, err := s.Root().Sys().ListMounts()
			if err != nil || mounts["autopay/"].RunningVersion != version {
				t.Errorf("Vault runs %s, want %s (%v)", mounts["autopay/"].RunningVersion, version, err)
			}
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

// TestTwoMounts shows that one process serves two mounts with several credentials each, that credentials don't affect
// each other, and that disabling one mount doesn't affect the other.
func TestTwoMounts(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	p := harness.StartAutopay(t)
	first, second := harness.EnableAt(t, s, "autopay"), harness.EnableAt(t, s, "parking")
	creds, tokens := map[string]harness.Credential{}, map[string]harness.Token{}
	for _, m := range []harness.Mount{first, second} {
		for _, name := range []string{"", "/oslo", "/kristiansand.2"} {
			key := m.At + name
			creds[key] = p.NewCredential()
			m.MustWrite(t, "config"+name, creds[key].Config())
			tokens[key] = m.Token(t, strings.TrimPrefix(name, "/"))
		}
	}
	if pids := s.PluginPIDs(t); len(pids) != 1 {
		t.Errorf("plugin processes %v, want one", pids)
	}

	check := func(m harness.Mount) {
		t.Helper()
		for key, cred := range creds {
			at, name, _ := strings.Cut(key, "/")
			if at != m.At {
				continue
			}
			now := m.Token(t, name)
			now.WantSame(t, tokens[key])
			if owner := p.Owner(t, now.AccessToken); owner != cred.ID {
				t.Errorf("%s serves a token of %s", key, owner)
			}
			p.WantRequests(t, cred, 1)
		}
	}
	for _, happen := range []func(){func() {}, func() { first.Reload(t) }, func() { first.KillPlugin(t) }} {
		happen()
		check(first)
		check(second)
	}

	if err := s.Root().Sys().Unmount("parking"); err != nil {
		t.Fatal(err)
	}
	check(first)
	// A new mount at the same path knows nothing of the old one.
	again := harness.EnableAt(t, s, "parking")
	again.Read(t, "token").Want(t, "token of a new mount", http.StatusBadRequest)
}
