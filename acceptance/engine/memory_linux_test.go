//go:build acceptance

package engine

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// copiesIn counts the copies of a text in the writable memory of a process.
func copiesIn(t *testing.T, pid int, text string) int {
	t.Helper()
	maps := harness.ReadFile(t, fmt.Sprintf("/proc/%d/maps", pid))
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	n := 0
	for region := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(region, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") || from > math.MaxInt64 {
			continue
		}
		const chunk = 4 << 20
		buf := make([]byte, chunk+len(text)-1) // chunks overlap by one byte less than the text
		for at := from; at < to; at += chunk {
			got, _ := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at)) // an error: not in use
			n += bytes.Count(buf[:got], []byte(text))
		}
	}
	return n
}

// appliedIndex returns the number of entries ever written to the server's storage.
func appliedIndex(t *testing.T, s *harness.Server) int64 {
	t.Helper()
	a, err := s.Call(t.Context(), s.RootToken, http.MethodGet, "sys/leader", nil)
	if err != nil {
		t.Fatal(err)
	}
	return harness.Integer(t, a.Fields, "raft_applied_index")
}

// flood sends n requests with a token, each to a random name of 96 letters
// under path, and checks their code.
func flood(t *testing.T, m harness.Mount, token string, n int, method, path string, want int) {
	t.Helper()
	var senders sync.WaitGroup
	for range 8 {
		senders.Go(func() {
			for range n / 8 {
				a, err := m.Call(t.Context(), token, method, m.At+"/"+path+"/"+harness.Random(48), nil)
				if err != nil || a.Status != want {
					t.Errorf("%s %s: %v %v, want %d", method, path, a, err, want)
					return
				}
			}
		})
	}
	senders.Wait()
}

// TestUnknownNamesCostNothing has a reader whose policy has a wildcard read 10,000
// random names, and some on each other path. The plugin's process must not grow,
// nothing is written, and Autopay is not asked.
func TestUnknownNamesCostNothing(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	before := appliedIndex(t, s)
	m.MustWrite(t, "config", cred.Config())
	if now := appliedIndex(t, s); now < before+3 {
		t.Errorf("the index went from %d to %d: it does not tell of 3 writes", before, now)
	}
	old := m.Snapshot(t, p, cred)
	reader := m.TokenFor(t, `path "autopay/*" { capabilities = ["read", "update", "delete"] }`)
	pid := m.PluginPIDs(t)[0]

	flood(t, m, reader, 2000, http.MethodGet, "token", http.StatusBadRequest) // first, so that connections and buffers exist
	index, resident := appliedIndex(t, s), harness.ProcStatus(t, pid, "VmRSS")
	for _, r := range []struct {
		method, path string
		n, want      int
	}{
		{http.MethodGet, "token", 10_000, http.StatusBadRequest},
		{http.MethodGet, "status", 1000, http.StatusNotFound},
		{http.MethodGet, "config", 1000, http.StatusNotFound},
		{http.MethodPut, "rotate", 1000, http.StatusBadRequest},
		{http.MethodDelete, "config", 1000, http.StatusNoContent},
		{http.MethodPut, "config", 1000, http.StatusForbidden}, // it would be a create
	} {
		flood(t, m, reader, r.n, r.method, r.path, r.want)
	}
	grown := harness.ProcStatus(t, pid, "VmRSS") - resident
	written := appliedIndex(t, s) - index
	t.Logf("FIGURE 15,000 requests for unknown names: resident memory %d kB, then %+d kB; %d raft entries", resident, grown, written)
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

// TestSecretInPluginMemory searches the memory of the plugin's process for a
// secret. Go does not overwrite what it frees, and gRPC, JSON and HTTP make copies,
// so some remain after the secret is deleted. The test shows how many, and that
// their number does not grow with use.
func TestSecretInPluginMemory(t *testing.T) {
	t.Parallel()
	s := harness.StartVault(t)
	m := harness.EnableAt(t, s, "autopay")
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	if pid := m.PluginPIDs(t)[0]; copiesIn(t, pid, cred.Secret) != 0 {
		t.Fatal("the secret is found before it was written")
	}
	m.MustWrite(t, "config", cred.Config())
	pid := m.PluginPIDs(t)[0]
	inUse := copiesIn(t, pid, cred.Secret)
	if inUse == 0 {
		t.Fatal("the search does not find a secret that is in use")
	}
	const writes = 300
	for i := range writes {
		m.MustWrite(t, "config", cred.Config("request_timeout", 10+i%2))
	}
	used := copiesIn(t, pid, cred.Secret)
	m.Do(t, http.MethodDelete, "config", nil)
	deleted, requests := writes, 0
	for ; deleted > writes*2/3 && requests < 16_000; requests += 4000 { // until the collector has run and memory is used again
		flood(t, m, m.RootToken, 4000, http.MethodGet, "token", http.StatusBadRequest)
		deleted = copiesIn(t, pid, cred.Secret)
	}
	t.Logf("FIGURE copies of a secret in the plugin's memory: %d in use, %d after %d more writes, %d after its deletion and %d requests",
		inUse, used, writes, deleted, requests)
	if deleted >= writes { // so many would remain if each write kept a copy
		t.Errorf("%d copies are left of %d writes", deleted, writes)
	}
	p.WantRequests(t, cred, 1)
}
