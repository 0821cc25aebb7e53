//go:build acceptance

package harness

import (
	"fmt"
	"testing"
)

// Cluster is Vault servers with one raft storage between them.
type Cluster []*Server

// StartCluster runs three servers, unsealed, with the plugin registered. Every
// node is a voter, so any one may be lost. When the test ends they are stopped,
// and the test fails if one has leaked a secret.
func StartCluster(tb testing.TB) Cluster {
	tb.Helper()
	const n = 3
	dir := tb.TempDir()
	first, err := launch(dir, "node0")
	if err != nil {
		tb.Fatal(err)
	}
	nodes := Cluster{first}
	tb.Cleanup(func() {
		for _, node := range nodes {
			node.retire(tb)
		}
	})

	// A new node votes once it has been healthy for this long; the default is 10 s.
	_, err = first.Root().Logical().WriteWithContext(tb.Context(), "sys/storage/raft/autopilot/configuration",
		map[string]any{"server_stabilization_time": "1s"})
	if err != nil {
		tb.Fatal(err)
	}

	for i := 1; i < n; i++ {
		node, err := newServer(dir, fmt.Sprintf("node%d", i), first.Addr)
		if err != nil {
			tb.Fatal(err)
		}
		node.UnsealKey, node.RootToken = first.UnsealKey, first.RootToken
		nodes = append(nodes, node)
	}
	for _, node := range nodes[1:] {
		// It can be unsealed as soon as it has found the first one.
		err := Poll(StartWithin, node.unseal)
		if err != nil {
			tb.Fatalf("%s: %v\n%s", node.Name, err, node.complaints())
		}
	}

	Eventually(tb, StartWithin, "not all nodes are voters", func() bool {
		state, err := first.Root().Sys().RaftAutopilotStateWithContext(tb.Context())
		return err == nil && len(state.Voters) == n && state.Healthy
	})
	return nodes
}

// Active returns the active node, and waits while there is none.
func (c Cluster) Active(tb testing.TB) *Server {
	tb.Helper()
	var leader *Server
	Eventually(tb, StartWithin, "no active node", func() bool {
		for _, node := range c {
			if node.ended() { // another server may have its port by now
				continue
			}
			health, err := node.Client("").Sys().Health()
			if err == nil && health.Initialized && !health.Sealed && !health.Standby {
				leader = node
				return true
			}
		}
		return false
	})
	return leader
}

// Standbys returns the running nodes other than the active one.
func (c Cluster) Standbys(tb testing.TB) []*Server {
	tb.Helper()
	leader := c.Active(tb)
	var others []*Server
	for _, node := range c {
		if node != leader && !node.ended() {
			others = append(others, node)
		}
	}
	return others
}

// Settle waits until every node is active or knows the active one, so that
// nothing more follows from what happened to one of them.
func (c Cluster) Settle(tb testing.TB) {
	tb.Helper()
	for _, node := range c {
		if err := node.ready(); err != nil {
			tb.Fatalf("%s: %v", node.Name, err)
		}
	}
}
