//go:build acceptance && bench && linux

package bench

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestBuilds compares builds of the plugin, for anyone who tries to make it faster.
// BENCH_BUILDS holds the paths of the other builds, separated by commas. Each build
// is a mount of the same server, in a process of its own.
func TestBuilds(t *testing.T) {
	if os.Getenv("BENCH_BUILDS") == "" {
		t.Fatal("BENCH_BUILDS is not set")
	}
	p := planned(t)
	s := benchServer(t, "builds", "warn", false)
	sim := harness.StartAutopayBanning(t, 0)
	cred := sim.NewCredential()
	var targets []target
	for i, path := range append([]string{filepath.Join(harness.PluginDir, harness.PluginName)}, strings.Split(os.Getenv("BENCH_BUILDS"), ",")...) {
		binary := harness.ReadFile(t, path)
		name := harness.PluginName
		if i > 0 {
			name = filepath.Base(path)
			harness.WriteFile(t, filepath.Join(harness.PluginDir, name), binary, 0o755)
			sum := sha256.Sum256(binary)
			err := s.Root().Sys().RegisterPluginWithContext(t.Context(), &api.RegisterPluginInput{
				Name: name, Type: api.PluginTypeSecrets, Command: name, SHA256: hex.EncodeToString(sum[:]),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Root().Sys().MountWithContext(t.Context(), name, &api.MountInput{Type: name}); err != nil {
			t.Fatal(err)
		}
		m := harness.Mount{Server: s, At: name}
		m.MustWrite(t, "config", cred.Config())
		all, err := harness.Children(s.PID())
		if err != nil {
			t.Fatal(err)
		}
		for pid, exe := range all {
			if filepath.Base(exe) == name {
				targets = append(targets, newTarget(name, s, m.Token(t, "").AccessToken, pid, name+"/token"))
			}
		}
	}
	for _, readers := range []int{1, 8, 64} {
		results := interleave(t, p, targets, readers)
		for i, rounds := range results {
			cpu := func(r round) float64 { return float64(r.vault + r.plugin + r.reader) }
			t.Logf("BENCH: %2d readers, %-28s %6.0f reads/s, %s of the first's; µs of Vault %.0f, of the plugin %.0f, together %s of the first's; p99 %s; %.1f MB",
				readers, targets[i].name, over(rounds, perSecond).median, spread(ratio(rounds, results[0], perSecond), "%.3f"),
				us(over(rounds, vaultTime).median), us(over(rounds, pluginTime).median), spread(ratio(rounds, results[0], cpu), "%.3f"),
				spread(ratio(rounds, results[0], p99), "%.2f"), memory(t, targets[i].plugin))
		}
	}
}
