//go:build acceptance

package engine

import (
	"net/http"
	"sync"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestUnknownNamesCostNothing has a reader whose policy has a wildcard read 10,000
// random names, and some on each other path. The plugin's process must not grow,
// nothing is written, and Autopay is not asked.
func TestUnknownNamesCostNothing(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	appliedIndex := func() int64 { // the number of entries ever written to the server's storage
		a, err := s.Call(t.Context(), s.RootToken, http.MethodGet, "sys/leader", nil)
		if err != nil {
			t.Fatal(err)
		}
		return harness.Integer(t, a.Fields, "raft_applied_index")
	}
	before := appliedIndex()
	m.MustWrite(t, "config", cred.Config())
	if now := appliedIndex(); now < before+3 {
		t.Errorf("the index went from %d to %d: it does not tell of 3 writes", before, now)
	}
	old := m.Snapshot(t, p, cred)
	reader := m.TokenFor(t, `path "autopay/*" { capabilities = ["read", "update", "delete"] }`)
	pid := m.PluginPIDs(t)[0]
	// flood sends n requests, each to a random name of 96 letters under path, and checks their code.
	flood := func(n int, method, path string, want int) {
		var senders sync.WaitGroup
		for range 8 {
			senders.Go(func() {
				for range n / 8 {
					a, err := m.Call(t.Context(), reader, method, m.At+"/"+path+"/"+harness.Random(48), nil)
					if err != nil || a.Status != want {
						t.Errorf("%s %s: %v %v, want %d", method, path, a, err, want)
						return
					}
				}
			})
		}
		senders.Wait()
	}

	flood(2000, http.MethodGet, "token", http.StatusBadRequest) // first, so that connections and buffers exist
	index, resident := appliedIndex(), harness.ProcStatus(t, pid, "VmRSS")
	flood(10_000, http.MethodGet, "token", http.StatusBadRequest)
	flood(1000, http.MethodGet, "status", http.StatusNotFound)
	flood(1000, http.MethodGet, "config", http.StatusNotFound)
	flood(1000, http.MethodPut, "rotate", http.StatusBadRequest)
	flood(1000, http.MethodDelete, "config", http.StatusNoContent)
	flood(1000, http.MethodPut, "config", http.StatusForbidden) // it would be a create
	grown := harness.ProcStatus(t, pid, "VmRSS") - resident
	written := appliedIndex() - index
	t.Logf("FIGURE 15,000 requests for unknown names: resident memory %d kB, then %+d kB; %d raft entries",
		resident, grown, written)
	if grown > 8<<10 {
		t.Errorf("the process grew by %d kB", grown)
	}
	if written > 100 { // Vault itself writes now and then
		t.Errorf("%d entries were written", written)
	}
	if pids := m.PluginPIDs(t); len(pids) != 1 || pids[0] != pid {
		t.Errorf("plugin processes %v, was %d", pids, pid)
	}
	m.WantUnchanged(t, p, cred, old, 0)
}
