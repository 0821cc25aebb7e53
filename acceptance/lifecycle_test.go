//go:build acceptance

package acceptance

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestMountLifecycle tunes, moves, disables and re-enables a mount, while
// another of the same process serves readers who notice nothing.
func TestMountLifecycle(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	sys := s.root().Sys()
	p := startProviderBanning(t, 30)
	p.SetLifetime(5 * time.Minute)
	m, other := enableAt(t, s, "autopay"), enableAt(t, s, "parking")
	cred, short, third := p.newCredential(), p.newCredential(), p.newCredential()
	m.mustWrite(t, "config", cred.config())
	m.mustWrite(t, "config/short", short.config("rotation_period", "5s"))
	other.mustWrite(t, "config", third.config())
	want := m.token(t, "")

	readers := startStorm(t)
	b := newBooks(p)
	readers.read(4, s, other.at+"/token", b)
	goesOn := func(t *testing.T) {
		t.Helper()
		if now := m.token(t, ""); now.AccessToken != want.AccessToken || now.LastVaultRotation != want.LastVaultRotation {
			t.Errorf("now %+v, was %+v", now, want)
		}
		p.asked(t, cred, 1)
		before := p.Requests(short.id)
		eventually(t, 7*time.Second, "the token is no longer replaced", func() bool { return p.Requests(short.id) > before })
		if now := m.token(t, "short").AccessToken; !p.Valid(now) {
			t.Error("a dead token is served")
		}
	}

	t.Run("tuned", func(t *testing.T) {
		text := "tuned"
		lease := "1h"
		err := sys.TuneMountAllowNilWithContext(t.Context(), "autopay", api.TuneMountConfigInput{Description: &text, DefaultLeaseTTL: &lease})
		if err != nil {
			t.Fatal(err)
		}
		goesOn(t)
	})
	t.Run("moved", func(t *testing.T) {
		if err := sys.RemountWithContext(t.Context(), "autopay", "payments"); err != nil {
			t.Fatal(err)
		}
		if a := m.read(t, "token"); a.status != http.StatusNotFound {
			t.Errorf("at the old path: %v, want Vault's 404", a)
		}
		m.at = "payments"
		goesOn(t)
	})
	var took time.Duration
	t.Run("disabled during a request", func(t *testing.T) {
		p.SetFault(slow)
		asked := p.Requests(short.id)
		eventually(t, 7*time.Second, "no request leaves", func() bool { return p.Requests(short.id) > asked })
		began := time.Now()
		if err := sys.Unmount(m.at); err != nil {
			t.Fatal(err)
		}
		if took = time.Since(began); took > soonest {
			t.Errorf("it took %v", took)
		}
		p.SetFault(autopaysim.Fault{})
		asked = p.Requests(short.id)
		time.Sleep(6 * time.Second) // a refresh was due in it
		p.asked(t, short, asked)
		p.asked(t, cred, 1)
	})
	t.Run("enabled again", func(t *testing.T) {
		again := enableAt(t, s, "autopay")
		if a := again.read(t, "token"); a.status != http.StatusBadRequest {
			t.Errorf("token of a new mount: %v, want 400", a)
		}
		p.asked(t, cred, 1)
		again.mustWrite(t, "config", cred.config())
		if now := again.token(t, ""); now.AccessToken == want.AccessToken || !p.Valid(now.AccessToken) {
			t.Errorf("now %+v, was %+v", now, want)
		}
		p.asked(t, cred, 2)
	})

	readers.stop()
	b.check(t)
	if b.own > 0 || len(b.seen()) != 1 {
		t.Errorf("the other mount: %d errors, %d tokens", b.own, len(b.seen()))
	}
	p.asked(t, third, 1)
	if pids := s.pluginPIDs(t); len(pids) != 1 {
		t.Errorf("plugin processes %v, want one for both mounts", pids)
	}
	t.Logf("FIGURE: mount tuned, moved, disabled during a request (%v), enabled again: the token goes on through the first two with 1 request; "+
		"%d reads of the other mount meanwhile, 0 errors, slowest pause %v",
		took.Round(10*time.Millisecond), b.good, b.end(time.Now()).Round(10*time.Millisecond))
}

const nextVersion = "v0.1.1"

// buildNext builds the plugin as another version beside the one under test,
// and returns the name and checksum of the file.
func buildNext(t *testing.T) (file, sha string) {
	t.Helper()
	file = pluginName + "-" + nextVersion
	return file, buildVersion(t, filepath.Join(suite.pluginDir, file), nextVersion)
}

// buildVersion builds the plugin as a version of one's choice, and returns the
// checksum of the file.
func buildVersion(t *testing.T, path, version string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-X main.version="+version, "-o", path, "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return shaOf(mustRead(t, path))
}

// TestUpgradeInPlace puts the next version of the plugin in the place of this
// one, and this one back: the same token goes on, Autopay is not asked.
func TestUpgradeInPlace(t *testing.T) {
	t.Parallel()
	file, sha := buildNext(t)
	s := startVault(t)
	m := enableAt(t, s, "autopay")
	p := startProvider(t)
	cred := p.newCredential()
	m.mustWrite(t, "config", cred.config())
	want, config := m.token(t, ""), m.read(t, "config").body
	if err := s.registerBinary(file, sha, nextVersion); err != nil {
		t.Fatal(err)
	}

	for _, step := range []struct{ name, version string }{
		{"upgrade", nextVersion},
		{"downgrade", suite.pluginVersion},
	} {
		t.Run(step.name, func(t *testing.T) {
			_, err := s.root().Logical().WriteWithContext(t.Context(), "sys/mounts/autopay/tune", map[string]any{"plugin_version": step.version})
			if err != nil {
				t.Fatal(err)
			}
			m.reload(t)
			if now := m.token(t, ""); now.AccessToken != want.AccessToken || now.LastVaultRotation != want.LastVaultRotation {
				t.Errorf("now %+v, was %+v", now, want)
			}
			if now := m.read(t, "config").data["client_id"]; now != cred.id {
				t.Errorf("client_id %v, config was %v", now, config)
			}
			a := m.read(t, "status")
			if a.data["plugin_version"] != step.version || a.data["state"] != "ok" {
				t.Errorf("status %v, want version %s", a, step.version)
			}
			mounts, err := s.root().Sys().ListMountsWithContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if at := mounts["autopay/"]; at.RunningVersion != step.version || at.PluginVersion != step.version {
				t.Errorf("Vault runs %s, registered %s, want %s", at.RunningVersion, at.PluginVersion, step.version)
			}
			p.asked(t, cred, 1)
		})
	}
	t.Logf("FIGURE: upgrade %s to %s and back in place: one token, %d request", suite.pluginVersion, nextVersion, p.Requests(cred.id))
}
