//go:build acceptance && bench && linux

package bench

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// plan is how much is measured.
type plan struct {
	rounds      int // an odd number: the middle one is the median
	warm, round time.Duration
	refreshes   int
	credentials int
	quick       bool // targets may be missed
}

// bench is a run: its plan, and the results as they will stand in the page.
type bench struct {
	plan
	strings.Builder
	missed []string // targets
}

func (b *bench) printf(format string, args ...any) { fmt.Fprintf(&b.Builder, format, args...) }

// target returns the text of a target, and notes it if it is missed.
func (b *bench) target(met bool, format string, args ...any) string {
	text := fmt.Sprintf(format, args...)
	if !met {
		b.missed = append(b.missed, text)
		text += ", **missed**"
	}
	return text
}

// TestBench measures, and puts the results into the page BENCH_PAGE.
func TestBench(t *testing.T) {
	b := &bench{plan: plan{rounds: 9, warm: time.Second / 2, round: 2 * time.Second, refreshes: 9, credentials: 10_000}}
	if os.Getenv("BENCH") == "quick" {
		b.plan = plan{rounds: 5, warm: time.Second / 5, round: time.Second, refreshes: 3, credentials: 1000, quick: true}
	}
	name := os.Getenv("BENCH_PAGE")
	page := string(harness.ReadFile(t, name))
	const from, to = "\n## Results\n", "\n## Storms and upgrades\n"
	before, rest, begins := strings.Cut(page, from)
	_, after, ends := strings.Cut(rest, to)
	if !begins || !ends {
		t.Fatalf("%s does not have the sections %q and %q", name, from, to)
	}

	out, err := exec.CommandContext(t.Context(), harness.VaultBin, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	vault, _, _ := strings.Cut(string(out), ",") // the rest is when it was built
	b.printf("\n`make bench` wrote this section on %s: %s, the plugin %s, %s, %s/%s,\n%d processors. "+
		"A figure is the median of %d rounds of %v, with the minimum and maximum in brackets.\n",
		time.Now().UTC().Format("2 January 2006"), vault, harness.PluginVersion,
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), b.rounds, b.round)
	defer func() { t.Log(b.String()) }()
	if !t.Run("side by side", b.sideBySide) ||
		!t.Run("many credentials", b.manyCredentials) ||
		!t.Run("during a refresh", b.duringRefresh) {
		t.FailNow()
	}
	harness.WriteFile(t, name, before+from+b.String()+to+after, 0o644)
	if len(b.missed) > 0 && !b.quick {
		t.Errorf("missed: %q", b.missed)
	}
}

// rate is the median of reads a second.
func rate(rounds []float64) string {
	median := int(over(rounds).median)
	if median < 1000 {
		return strconv.Itoa(median)
	}
	return fmt.Sprintf("%d,%03d", median/1000, median%1000)
}

// subject is a server with paths that are read, and what was measured.
type subject struct {
	server     *harness.Server
	paths      []string
	rates, p99 []float64 // of each round: reads a second, milliseconds
}

// measure reads from all subjects in each round, with 8 readers. Each round starts
// with the next subject.
func (b *bench) measure(t *testing.T, subjects []*subject) {
	t.Helper()
	for i := range b.rounds {
		for j := range subjects {
			s := subjects[(i+j)%len(subjects)]
			began := time.Now().Add(b.warm)
			ended := began.Add(b.round)
			times := between(t, readUntil(t, s.server, s.paths, 8, ended), began, ended)
			s.rates = append(s.rates, float64(len(times))/b.round.Seconds())
			s.p99 = append(s.p99, p99(times))
		}
	}
}

// sideBySide compares the engine with the ordinary plugin and KV v1.
func (b *bench) sideBySide(t *testing.T) {
	s := startVault(t)
	m := harness.EnableAt(t, s, "autopay")
	m.MustWrite(t, "config", harness.StartAutopay(t).NewCredential().Config())
	s.AddPlugin(t, "ordinary", "ordinary", api.PluginTypeSecrets)
	for _, plugin := range []string{"ordinary", "kv"} {
		if err := s.Root().Sys().MountWithContext(t.Context(), plugin, &api.MountInput{Type: plugin}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Root().Logical().WriteWithContext(t.Context(), "kv/token", m.Read(t, "token").Data); err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name, path string
		least      float64 // ratio of the engine's rate to this; 0: any
	}{
		{"this engine", "autopay/token", 0},
		{"ordinary plugin, from memory", "ordinary/token", 1.3},
		{"ordinary plugin, 1 storage read", "ordinary/token1", 1.6},
		{"ordinary plugin, 3 storage reads", "ordinary/token3", 2},
		{"KV v1, inside Vault", "kv/token", 0},
	}
	var all []*subject
	for _, row := range rows {
		all = append(all, &subject{server: s, paths: []string{row.path}})
	}
	b.measure(t, all)
	b.printf("\n### Reads side by side\n\n" +
		"| | reads/s | p99 ms | the engine's rate compared with this | target |\n|---|---|---|---|---|\n")
	for i, row := range rows {
		compared, target := ratio(all[0].rates, all[i].rates), "–"
		if row.least > 0 {
			target = b.target(compared.median >= row.least, "at least %.1f", row.least)
		}
		b.printf("| %s | %s | %s | %s | %s |\n",
			row.name, rate(all[i].rates), over(all[i].p99).text(2), compared.text(2), target)
	}
}

// manyCredentials compares a server that has one credential with one that has many.
func (b *bench) manyCredentials(t *testing.T) {
	sim := harness.StartAutopayBanning(t, 0)
	one, many := b.fill(t, sim, 1), b.fill(t, sim, b.credentials)
	unseals := []figure{b.untilToken(t, one), b.untilToken(t, many)}
	b.measure(t, []*subject{one, many}) // in the plugin processes of the last unseal
	// Resident memory, without the pages of the executable, which the kernel drops as it likes.
	memory := func(s *subject) float64 {
		return float64(harness.ProcStatus(t, s.server.PluginPIDs(t)[0], "RssAnon")) * 1024 / 1e6 // from KiB
	}
	memories := []float64{memory(one), memory(many)}
	grown := memories[1] - memories[0]
	rates := ratio(many.rates, one.rates)

	b.printf("\n### Many credentials\n\n"+
		"| | 1 credential | %d,000 credentials | compared | target |\n|---|---|---|---|---|\n", b.credentials/1000)
	b.printf("| reads/s | %s | %s | %s | %s |\n", rate(one.rates), rate(many.rates), rates.text(2),
		b.target(rates.median >= .9, "at least 0.9"))
	b.printf("| memory of the plugin process, MB | %.1f | %.1f | +%.1f | %s |\n", memories[0], memories[1], grown,
		b.target(grown <= 60, "at most +60"))
	b.printf("| from unseal to the first token, ms | %s | %s | | %s |\n", unseals[0].text(0), unseals[1].text(0),
		b.target(unseals[1].median <= 1000, "at most 1,000"))
}

// fill starts a server and configures credentials, 32 at a time.
func (b *bench) fill(t *testing.T, sim *harness.Autopay, credentials int) *subject {
	t.Helper()
	s := &subject{server: startVault(t)}
	m := harness.EnableAt(t, s.server, "autopay")
	config := sim.NewCredential().Config()
	writers, limit := sync.WaitGroup{}, make(chan struct{}, 32)
	for i := range credentials {
		name := fmt.Sprintf("operator-%d", i)
		s.paths = append(s.paths, m.At+"/"+harness.TokenPath(name))
		limit <- struct{}{}
		writers.Go(func() {
			defer func() { <-limit }()
			a, err := m.Call(t.Context(), m.RootToken, http.MethodPut, m.At+"/"+harness.ConfigPath(name), config)
			if err != nil || a.Status != http.StatusNoContent {
				t.Errorf("config of %s: %v, %v", name, a, err)
			}
		})
	}
	writers.Wait()
	return s
}

// untilToken measures the time from an unseal to the first token. Meanwhile the plugin
// loads its credentials.
func (b *bench) untilToken(t *testing.T, s *subject) figure {
	t.Helper()
	var times []float64
	for range b.rounds {
		s.server.Seal(t)
		began := time.Now()
		s.server.Unseal(t)
		if err := get(t.Context(), http.DefaultClient, s.server, s.paths[len(s.paths)/2]); err != nil {
			t.Fatal(err)
		}
		times = append(times, ms(time.Since(began)))
	}
	return over(times)
}

// duringRefresh compares reads during a refresh with those before it.
func (b *bench) duringRefresh(t *testing.T) {
	got, slowest := readDuringRefresh(t, 8, b.refreshes)
	b.printf("\n### During a refresh\n\nWhile Autopay takes 5 seconds over a refresh, the p99 of reads is %s times that "+
		"before (%s).\nThe slowest read of all took %.0f ms.\n",
		got.text(2), b.target(got.median <= mostDuringRefresh, "target: at most %.1f", mostDuringRefresh), ms(slowest))
}
