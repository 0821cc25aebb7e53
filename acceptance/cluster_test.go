//go:build acceptance

package acceptance

import (
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// cluster is Vault servers with one raft storage between them.
type cluster []*server

// startCluster runs three servers, unsealed, with the plugin registered and
// every node a voter, so that any one may be lost.
func startCluster(t *testing.T) cluster {
	t.Helper()
	const n = 3
	dir := t.TempDir()
	first, err := launch(dir, "node0")
	if err != nil {
		t.Fatal(err)
	}
	nodes := cluster{first}
	t.Cleanup(func() {
		for _, node := range nodes {
			node.retire(t)
		}
	})

	// A new node votes after it has been well for a while; 10 s is the default.
	_, err = first.root().Logical().WriteWithContext(t.Context(), "sys/storage/raft/autopilot/configuration",
		map[string]any{"server_stabilization_time": "1s"})
	if err != nil {
		t.Fatal(err)
	}

	for i := 1; i < n; i++ {
		node, err := newServer(dir, fmt.Sprintf("node%d", i), first.addr)
		if err != nil {
			t.Fatal(err)
		}
		node.keys = first.keys
		nodes = append(nodes, node)
	}
	for _, node := range nodes[1:] {
		// It can be unsealed as soon as it has found the first one.
		err := poll(startWithin, node.unseal)
		if err != nil {
			t.Fatalf("%s: %v\n%s", node.name, err, node.complaints())
		}
	}

	eventually(t, startWithin, "not all nodes are voters", func() bool {
		state, err := first.root().Sys().RaftAutopilotStateWithContext(t.Context())
		return err == nil && len(state.Voters) == n && state.Healthy
	})
	return nodes
}

// active returns the node that leads, and waits while none does.
func (c cluster) active(t *testing.T) *server {
	t.Helper()
	var leader *server
	eventually(t, startWithin, "no active node", func() bool {
		for _, node := range c {
			select {
			case <-node.exited:
				continue
			default:
			}
			health, err := node.client("").Sys().Health()
			if err == nil && health.Initialized && !health.Sealed && !health.Standby {
				leader = node
				return true
			}
		}
		return false
	})
	return leader
}

// standbys returns the running nodes that do not lead.
func (c cluster) standbys(t *testing.T) []*server {
	t.Helper()
	leader := c.active(t)
	var others []*server
	for _, node := range c {
		select {
		case <-node.exited:
		default:
			if node != leader {
				others = append(others, node)
			}
		}
	}
	return others
}

// TestClusterServesOneToken reads through every node, then loses the active
// one: the next goes on with the same token and asks Autopay for nothing.
func TestClusterServesOneToken(t *testing.T) {
	t.Parallel()
	nodes := startCluster(t)
	p := startProvider(t)
	first := nodes.active(t)
	m := enableAt(t, first, "autopay")
	cred := p.newCredential()
	m.mustWrite(t, "config", cred.config())
	want := m.token(t, "").AccessToken

	for _, node := range nodes {
		if got := (mount{node, m.at}).token(t, "").AccessToken; got != want {
			t.Errorf("%s serves another token", node.name)
		}
	}

	first.end(syscall.SIGKILL)
	eventually(t, 30*time.Second, "the next node does not serve the token", func() bool {
		a, err := nodes.active(t).call(t.Context(), m.keys.root, http.MethodGet, m.at+"/token", nil)
		return err == nil && a.status == http.StatusOK && a.data["access_token"] == want
	})
	for _, node := range nodes.standbys(t) {
		if got := (mount{node, m.at}).token(t, "").AccessToken; got != want {
			t.Errorf("%s serves another token after the failover", node.name)
		}
	}
	p.asked(t, cred, 1)

	// A node that comes back serves it too.
	if err := first.start(); err != nil {
		t.Fatal(err)
	}
	first.mustUnseal(t)
	if got := m.token(t, "").AccessToken; got != want {
		t.Error("the node that came back serves another token")
	}
}
