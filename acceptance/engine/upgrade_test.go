//go:build acceptance

package engine

import (
	"path/filepath"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestUpgradeInPlace upgrades the plugin to another version and downgrades it again.
// The same token is served after each step, and Autopay is not asked.
func TestUpgradeInPlace(t *testing.T) {
	t.Parallel()
	file := harness.PluginName + "-" + harness.NextVersion
	sha := harness.CopyNextVersion(t, filepath.Join(harness.PluginDir, file))
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	want, config := m.Token(t, ""), m.Read(t, "config").Body
	if err := s.Register(file, sha, harness.NextVersion); err != nil {
		t.Fatal(err)
	}

	for _, step := range []struct{ name, version string }{
		{"upgrade", harness.NextVersion},
		{"downgrade", harness.PluginVersion},
	} {
		t.Run(step.name, func(t *testing.T) {
			_, err := s.Root().Logical().WriteWithContext(t.Context(), "sys/mounts/autopay/tune", map[string]any{"plugin_version": step.version})
			if err != nil {
				t.Fatal(err)
			}
			m.Reload(t)
			m.Token(t, "").WantSame(t, want)
			if now := m.Read(t, "config").Data["client_id"]; now != cred.ID {
				t.Errorf("client_id %v, config was %v", now, config)
			}
			a := m.Read(t, "status")
			if a.Data["plugin_version"] != step.version || a.Data["state"] != "ok" {
				t.Errorf("status %v, want version %s", a, step.version)
			}
			mounts, err := s.Root().Sys().ListMountsWithContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if at := mounts["autopay/"]; at.RunningVersion != step.version || at.PluginVersion != step.version {
				t.Errorf("Vault runs %s, registered %s, want %s", at.RunningVersion, at.PluginVersion, step.version)
			}
			p.WantRequests(t, cred, 1)
		})
	}
	t.Logf("FIGURE: upgrade %s to %s and back in place: one token, %d request", harness.PluginVersion, harness.NextVersion, p.Requests(cred.ID))
}
