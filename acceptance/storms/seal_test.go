//go:build acceptance

package storms

import (
	"net/http"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// soonest is how long it may take to disable a mount or to seal a node while a
// request to Autopay is under way. The engine gives up the request within a
// second; the rest is Vault's own.
const soonest = 2 * time.Second

// slow makes Autopay take 3 s over each answer, which is longer than soonest.
var slow = autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second}

// TestSealDuringRequest seals the node while Autopay is slow to answer a request.
// The engine does not delay the seal, and at most that one request is lost.
func TestSealDuringRequest(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	p.SetLifetime(time.Minute)
	var figures [2]time.Duration

	seal := func(t *testing.T, cred harness.Credential, requests int, within time.Duration) time.Duration {
		t.Helper()
		p.SetFault(slow)
		harness.Eventually(t, 8*time.Second, "no request leaves", func() bool { return p.Requests(cred.ID) == requests })
		began := time.Now()
		s.Seal(t)
		took := time.Since(began)
		if took > within {
			t.Errorf("the seal took %v, at most %v is right", took, within)
		}
		p.SetFault(autopaysim.Fault{})
		s.Unseal(t)
		return took
	}

	t.Run("refresh under a live token", func(t *testing.T) {
		cred := p.NewCredential()
		m.MustWrite(t, "config/warm", cred.Config("rotation_period", "5s"))
		old := m.Token(t, "warm").AccessToken
		p.SetFault(slow)
		figures[0] = seal(t, cred, 2, soonest)
		if now := m.Token(t, "warm").AccessToken; !p.Accepts(t, now) {
			t.Error("a dead token is served")
		}
		harness.Eventually(t, 3*time.Second, "the token is not replaced", func() bool {
			return m.Token(t, "warm").AccessToken != old
		})
		p.WantRequests(t, cred, 3) // one is lost
		m.Do(t, http.MethodDelete, "config/warm", nil)
	})

	t.Run("reader without a token", func(t *testing.T) {
		cred := p.NewCredential()
		m.MustWrite(t, "config/cold", cred.Unverified())
		p.SetFault(slow)
		served := make(chan harness.Answer, 1)
		go func() {
			a, err := m.Call(t.Context(), m.RootToken, http.MethodGet, m.At+"/token/cold", nil)
			if err != nil {
				t.Error(err)
			}
			served <- a
		}()
		// Vault waits for requests under way before it seals (vault/core.go,
		// cancelCtxAndLock), so the reader gets the token and nothing is lost.
		figures[1] = seal(t, cred, 1, slow.Delay+soonest)
		if a := <-served; a.Status != http.StatusOK {
			t.Errorf("the reader got %v", a)
		}
		if now := m.Token(t, "cold").AccessToken; !p.Accepts(t, now) {
			t.Error("a dead token is served")
		}
		p.WantRequests(t, cred, 1)
	})
	t.Logf("FIGURE: node sealed while Autopay takes 3 s over a request: sealed in %v during a refresh (1 request lost), "+
		"in %v under a waiting reader, whom Vault lets end (0 lost)",
		figures[0].Round(10*time.Millisecond), figures[1].Round(10*time.Millisecond))
}
