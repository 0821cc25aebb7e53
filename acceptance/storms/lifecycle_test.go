//go:build acceptance

package storms

import (
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestMountLifecycle tunes, moves, disables and re-enables a mount. Readers of
// another mount in the same process notice nothing.
func TestMountLifecycle(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	sys := s.Root().Sys()
	p := harness.StartAutopayBanning(t, 30)
	p.SetLifetime(5 * time.Minute)
	m, other := harness.EnableAt(t, s, "autopay"), harness.EnableAt(t, s, "parking")
	cred, short, third := p.NewCredential(), p.NewCredential(), p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	m.MustWrite(t, "config/short", short.Config("rotation_period", "5s"))
	other.MustWrite(t, "config", third.Config())
	want := m.Token(t, "")

	readers := startStorm(t)
	b := newBooks(p)
	readers.read(4, s, other.At+"/token", b)
	goesOn := func(t *testing.T) {
		t.Helper()
		m.Token(t, "").WantSame(t, want)
		p.WantRequests(t, cred, 1)
		before := p.Requests(short.ID)
		harness.Eventually(t, 7*time.Second, "the token is no longer replaced", func() bool {
			return p.Requests(short.ID) > before
		})
		if now := m.Token(t, "short").AccessToken; !p.Valid(now) {
			t.Error("a dead token is served")
		}
	}

	t.Run("tuned", func(t *testing.T) {
		text, lease := "tuned", "1h"
		tuned := api.TuneMountConfigInput{Description: &text, DefaultLeaseTTL: &lease}
		if err := sys.TuneMountAllowNilWithContext(t.Context(), "autopay", tuned); err != nil {
			t.Fatal(err)
		}
		goesOn(t)
	})
	t.Run("moved", func(t *testing.T) {
		if err := sys.RemountWithContext(t.Context(), "autopay", "payments"); err != nil {
			t.Fatal(err)
		}
		m.Read(t, "token").Want(t, "at the old path", http.StatusNotFound)
		m.At = "payments"
		goesOn(t)
	})
	var took time.Duration
	t.Run("disabled during a request", func(t *testing.T) {
		p.SetFault(slow)
		asked := p.Requests(short.ID)
		harness.Eventually(t, 7*time.Second, "no request leaves", func() bool { return p.Requests(short.ID) > asked })
		began := time.Now()
		if err := sys.Unmount(m.At); err != nil {
			t.Fatal(err)
		}
		if took = time.Since(began); took > soonest {
			t.Errorf("it took %v", took)
		}
		p.SetFault(autopaysim.Fault{})
		asked = p.Requests(short.ID)
		time.Sleep(6 * time.Second) // a refresh was due in it
		p.WantRequests(t, short, asked)
		p.WantRequests(t, cred, 1)
	})
	t.Run("enabled again", func(t *testing.T) {
		again := harness.EnableAt(t, s, "autopay")
		again.Read(t, "token").Want(t, "token of a new mount", http.StatusBadRequest)
		p.WantRequests(t, cred, 1)
		again.MustWrite(t, "config", cred.Config())
		if now := again.Token(t, ""); now.AccessToken == want.AccessToken || !p.Valid(now.AccessToken) {
			t.Errorf("now %+v, was %+v", now, want)
		}
		p.WantRequests(t, cred, 2)
	})

	readers.stop()
	b.check(t)
	if b.own > 0 || len(b.tokens) != 1 {
		t.Errorf("the other mount: %d errors, %d tokens", b.own, len(b.tokens))
	}
	p.WantRequests(t, third, 1)
	if pids := s.PluginPIDs(t); len(pids) != 1 {
		t.Errorf("plugin processes %v, want one for both mounts", pids)
	}
	t.Logf("FIGURE: mount disabled during a request in %v; %d reads of another mount while this one is tuned, moved, "+
		"disabled and enabled again: 0 errors, slowest pause %v", took.Round(10*time.Millisecond), b.good, b.gap())
}
