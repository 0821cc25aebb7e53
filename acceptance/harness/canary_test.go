//go:build acceptance

package harness

import (
	"os"
	"testing"
)

// TestCanaryIsHeard shows that the search finds what it looks for, wherever a
// server may leave it.
func TestCanaryIsHeard(t *testing.T) {
	t.Parallel()
	secret, token := NewSecret(), "sim."+Random(16)
	s := &Server{Name: "planted", dir: t.TempDir(), witness: newWitness()}
	if err := os.MkdirAll(s.Path("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"server.log": secret, "data/raft.db": token, "clean.log": "nothing"} {
		WriteFile(t, s.Path(file), `{"error":"`+text+`"}`, 0o600)
	}
	s.witness.see("error", []byte("refused: "+secret), true)
	s.witness.see("token", []byte(token), true)

	if found := s.Leaks(); len(found) != 3 {
		t.Errorf("found %d leaks, want the 3 planted: %q", len(found), found)
	}
}
