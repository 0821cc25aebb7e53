//go:build acceptance

package engine

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestClusterServesOneToken reads the token through every node, then kills the
// active one. The next active node serves the same token without asking Autopay.
func TestClusterServesOneToken(t *testing.T) {
	t.Parallel()
	nodes := harness.StartCluster(t)
	p := harness.StartAutopay(t)
	first := nodes.Active(t)
	m := harness.EnableAt(t, first, "autopay")
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	want := m.Token(t, "").AccessToken

	for _, node := range nodes {
		// A standby of OpenBao does not know the mount for a moment.
		harness.Eventually(t, harness.StartWithin, node.Name+" does not know the mount", func() bool {
			return m.On(node).Read(t, "token").Status != http.StatusNotFound
		})
		if got := m.On(node).Token(t, "").AccessToken; got != want {
			t.Errorf("%s serves another token", node.Name)
		}
	}

	first.End(syscall.SIGKILL)
	harness.Eventually(t, 30*time.Second, "the next node does not serve the token", func() bool {
		a, err := nodes.Active(t).Call(t.Context(), m.RootToken, http.MethodGet, m.At+"/token", nil)
		return err == nil && a.Status == http.StatusOK && a.Data["access_token"] == want
	})
	for _, node := range nodes.Standbys(t) {
		if got := m.On(node).Token(t, "").AccessToken; got != want {
			t.Errorf("%s serves another token after the failover", node.Name)
		}
	}
	p.WantRequests(t, cred, 1)

	// A node that comes back serves it too.
	first.Restart(t, syscall.SIGKILL)
	if got := m.Token(t, "").AccessToken; got != want {
		t.Error("the node that came back serves another token")
	}
}
