//go:build acceptance

package acceptance

import (
	"net/http"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// soonest is how long the end of a mount or a node may take while a request to
// Autopay is under way: the engine lets go within a second, the rest is
// Vault's.
const soonest = 2 * time.Second

// slow makes the provider take 3 s over each answer, longer than soonest.
var slow = autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second}

// TestSealDuringRequest seals the node while Autopay takes its time over a
// request: the engine does not hold it up, and at most the one request is lost.
func TestSealDuringRequest(t *testing.T) {
	t.Parallel()
	s := startVault(t)
	m := enableAt(t, s, "autopay")
	p := startProvider(t)
	p.SetLifetime(time.Minute)
	var figures [2]time.Duration

	seal := func(t *testing.T, cred credential, requests int, within time.Duration) time.Duration {
		t.Helper()
		p.SetFault(slow)
		eventually(t, 8*time.Second, "no request leaves", func() bool { return p.Requests(cred.id) == requests })
		began := time.Now()
		s.seal(t)
		took := time.Since(began)
		if took > within {
			t.Errorf("the seal took %v, at most %v is right", took, within)
		}
		p.SetFault(autopaysim.Fault{})
		s.mustUnseal(t)
		return took
	}

	t.Run("refresh under a live token", func(t *testing.T) {
		cred := p.newCredential()
		m.mustWrite(t, "config/warm", cred.config("rotation_period", "5s"))
		old := m.token(t, "warm").AccessToken
		p.SetFault(slow)
		figures[0] = seal(t, cred, 2, soonest)
		if now := m.token(t, "warm").AccessToken; !p.accepts(t, now) {
			t.Error("a dead token is served")
		}
		eventually(t, 3*time.Second, "the token is not replaced", func() bool { return m.token(t, "warm").AccessToken != old })
		p.asked(t, cred, 3) // one is lost
		m.do(t, http.MethodDelete, "config/warm", nil)
	})

	t.Run("reader without a token", func(t *testing.T) {
		cred := p.newCredential()
		m.mustWrite(t, "config/cold", cred.unproved())
		p.SetFault(slow)
		served := make(chan answer, 1)
		go func() {
			a, err := m.call(t.Context(), m.keys.root, http.MethodGet, m.at+"/token/cold", nil)
			if err != nil {
				t.Error(err)
			}
			served <- a
		}()
		// Vault lets requests under way end before it seals (vault/core.go,
		// cancelCtxAndLock), so the reader is served and nothing is lost.
		figures[1] = seal(t, cred, 1, slow.Delay+soonest)
		if a := <-served; a.status != http.StatusOK {
			t.Errorf("the reader got %v", a)
		}
		if now := m.token(t, "cold").AccessToken; !p.accepts(t, now) {
			t.Error("a dead token is served")
		}
		p.asked(t, cred, 1)
	})
	t.Logf("FIGURE: node sealed while Autopay takes 3 s over a request: sealed in %v during a refresh (1 request lost), "+
		"in %v under a waiting reader, whom Vault lets end (0 lost)",
		figures[0].Round(10*time.Millisecond), figures[1].Round(10*time.Millisecond))
}
