//go:build acceptance && bench && linux

package bench

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// plan is how long everything takes.
type plan struct {
	rounds        int // an odd number: the middle one is the median
	warm, measure time.Duration
	refreshes     int
	cold          int // first reads
	names         []int
	mounts        int
	unseals       int
	soak          time.Duration
	out           string // the directory for the document
	quick         bool
}

// planned reads BENCH (full, quick), BENCH_SOAK (a duration) and BENCH_OUT (a directory).
func planned(t *testing.T) plan {
	t.Helper()
	p := plan{
		rounds: 9, warm: 500 * time.Millisecond, measure: 2 * time.Second,
		refreshes: 9, cold: 21, names: []int{1, 100, 1000, 10_000}, mounts: 100, unseals: 5, soak: 10 * time.Minute,
	}
	switch mode := os.Getenv("BENCH"); mode {
	case "", "full":
	case "quick":
		p.quick = true
		p.rounds, p.warm, p.measure = 3, 200*time.Millisecond, 500*time.Millisecond
		p.refreshes, p.cold, p.names, p.mounts, p.unseals, p.soak = 3, 5, []int{1, 1000}, 10, 1, 20*time.Second
	default:
		t.Fatalf("BENCH=%s: there are full and quick", mode)
	}
	if text := os.Getenv("BENCH_SOAK"); text != "" {
		var err error
		if p.soak, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	if p.out = os.Getenv("BENCH_OUT"); p.out == "" {
		t.Fatal("BENCH_OUT is not set: run `make bench`")
	}
	return p
}

// TestBench runs all measurements, one after the other, and writes benchmarks.md
// and benchmarks.svg.
func TestBench(t *testing.T) {
	p := planned(t)
	r := &report{plan: p, date: time.Now().UTC()}
	for _, part := range []struct {
		name string
		run  func(*testing.T, plan, *report)
	}{
		{"in process", benchInProcess},
		{"reads", benchReads},
		{"scale", benchScale},
		{"soak", benchSoak},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.run(t, p, r) }) {
			t.FailNow()
		}
	}
	if r.inProcess == nil || r.reads == nil || r.scale == nil || r.soak.parts == nil {
		t.Log("BENCH: not all parts were run, so no document")
		return
	}
	if err := r.write(p.out); err != nil {
		t.Fatal(err)
	}
	t.Logf("BENCH: written %s/benchmarks.md and benchmarks.svg", p.out)
	for _, target := range r.targets() {
		if target.met {
			continue
		}
		missed := fmt.Sprintf("BENCH: missed: %s: %s, should be %s", target.what, target.got, target.want)
		if p.quick {
			t.Log(missed, "(quick: nothing is proved)")
		} else {
			t.Error(missed)
		}
	}
}

// benchInProcess runs the Go benchmarks of the engine.
func benchInProcess(t *testing.T, p plan, r *report) {
	t.Helper()
	count := "5"
	if p.rounds < 5 {
		count = "1"
	}
	cmd := exec.CommandContext(t.Context(), harness.Tool(t, "model.test"), "-test.run=^$", "-test.bench=.", "-test.benchmem", "-test.count="+count)
	cmd.Dir = "../.."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	r.inProcess = parseGoBenchmarks(t, string(out))
	for _, b := range r.inProcess {
		t.Logf("BENCH: %s: %s", b.name, b)
	}
}

const inMemory = "/dev/shm"

// benchServer starts a server with the given log level and no audit device. If fast
// is set its data is in memory, where the system has a directory for that.
func benchServer(t *testing.T, name, level string, fast bool) *harness.Server {
	t.Helper()
	if _, err := os.Stat(inMemory); fast && err == nil {
		t.Setenv("TMPDIR", inMemory)
	}
	s, err := harness.Launch(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	quieten(t, s)
	if _, err := s.Root().Logical().WriteWithContext(t.Context(), "sys/loggers", map[string]any{"level": level}); err != nil {
		t.Fatal(err)
	}
	return s
}

// onlyPlugin returns the ID of the one process that serves the engine.
func onlyPlugin(t *testing.T, s *harness.Server) int {
	t.Helper()
	pids := s.PluginPIDs(t)
	if len(pids) != 1 {
		t.Fatalf("%d plugin processes", len(pids))
	}
	return pids[0]
}

// subjects mounts everything that is compared, the engine first.
func subjects(t *testing.T, m harness.Mount) []target {
	t.Helper()
	s := m.Server
	token := m.Token(t, "")
	floor := enableFloor(t, s, token.AccessToken)
	if err := s.Root().Sys().MountWithContext(t.Context(), "kv", &api.MountInput{Type: "kv", Options: map[string]string{"version": "1"}}); err != nil {
		t.Fatal(err)
	}
	data := maps.Clone(m.Read(t, "token").Data)
	if _, err := s.Root().Logical().WriteWithContext(t.Context(), "kv/token", data); err != nil {
		t.Fatal(err)
	}
	return []target{
		newTarget("this engine", s, token.AccessToken, onlyPlugin(t, s), m.At+"/token"),
		newTarget("ordinary plugin, from memory", s, token.AccessToken, floor, "floor/token"),
		newTarget("ordinary plugin, 1 storage read", s, token.AccessToken, floor, "floor/token1"),
		newTarget("ordinary plugin, 3 storage reads", s, token.AccessToken, floor, "floor/token3"),
		newTarget("KV v1, inside Vault", s, token.AccessToken, 0, "kv/token"),
	}
}

// enableFloor mounts the plugin in floor/, and returns its process.
func enableFloor(t *testing.T, s *harness.Server, token string) int {
	t.Helper()
	binary := harness.ReadFile(t, harness.Tool(t, "floor"))
	harness.WriteFile(t, filepath.Join(harness.PluginDir, "floor"), binary, 0o755)
	sys := s.Root().Sys()
	err := sys.RegisterPluginWithContext(t.Context(), &api.RegisterPluginInput{
		Name: "floor", Type: api.PluginTypeSecrets, Command: "floor", SHA256: harness.SHA256(binary),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sys.MountWithContext(t.Context(), "floor", &api.MountInput{Type: "floor"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Root().Logical().WriteWithContext(t.Context(), "floor/setup", map[string]any{"access_token": token}); err != nil {
		t.Fatal(err)
	}
	all, err := harness.Children(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	for pid, exe := range all {
		if filepath.Base(exe) == "floor" {
			return pid
		}
	}
	t.Fatal("no process of the floor")
	return 0
}

// interleave measures all targets in each round. Each round starts with the next target.
func interleave(t *testing.T, p plan, targets []target, readers int) [][]round {
	t.Helper()
	results := make([][]round, len(targets))
	for i := range p.rounds {
		for j := range targets {
			at := (i + j) % len(targets)
			results[at] = append(results[at], load(t, targets[at], readers, p.warm, p.measure))
		}
	}
	return results
}

// benchReads compares the targets, then measures cold reads and reads during a refresh.
func benchReads(t *testing.T, p plan, r *report) {
	t.Helper()
	s := benchServer(t, "reads", "warn", false)
	health, err := s.Root().Sys().Health()
	if err != nil {
		t.Fatal(err)
	}
	r.vault = health.Version
	sim := harness.StartAutopayBanning(t, 0)
	m := harness.EnableAt(t, s, "autopay")
	m.MustWrite(t, "config", sim.NewCredential().Config())
	all := subjects(t, m)
	for _, on := range all {
		r.subjects = append(r.subjects, on.name)
	}
	for _, readers := range []int{1, 8, 64} {
		results := interleave(t, p, all, readers)
		r.reads = append(r.reads, sideBySide{readers, results})
		for i, rounds := range results {
			rate := over(rounds, perSecond)
			t.Logf("BENCH: %2d readers, %-32s %6.0f reads/s (%.0f to %.0f), p50 %.2f ms, p99 %.2f ms; engine: %.2f times that", readers, all[i].name,
				rate.median, rate.least, rate.most, ms(over(rounds, p50).median), ms(over(rounds, p99).median), ratio(results[0], rounds, perSecond).median)
		}
	}
	r.cold = benchCold(t, m, sim, p.cold)
	t.Logf("BENCH: cold read: adds %.1f ms (%.1f to %.1f) to an Autopay that takes %v", ms(r.cold.median), ms(r.cold.least), ms(r.cold.most), coldDelay)
	r.refresh = benchRefresh(t, m, sim, p.refreshes)
	t.Logf("BENCH: during a refresh: p99 is %.2f times the steady one (%.2f to %.2f)", r.refresh.ratio.median, r.refresh.ratio.least, r.refresh.ratio.most)
}

const coldDelay = 200 * time.Millisecond

// benchCold measures how much longer than Autopay's answer the first read of a
// credential takes when it was stored with verify=false.
func benchCold(t *testing.T, m harness.Mount, sim *harness.Autopay, n int) figure[time.Duration] {
	t.Helper()
	sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: coldDelay})
	defer sim.SetFault(autopaysim.Fault{})
	client, err := dial(m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer client.conn.Close()
	added := make([]time.Duration, n)
	for i := range added {
		name := fmt.Sprintf("cold-%d", i)
		cred := sim.NewCredential()
		m.MustWrite(t, harness.ConfigPath(name), cred.Unverified())
		on := newTarget(name, m.Server, `"access_token":"sim.`, 0, m.At+"/"+harness.TokenPath(name))
		began := time.Now()
		if err := client.get(on.requests[0], on.expect); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		log := sim.Log()
		sim.WantRequests(t, cred, 1)
		added[i] = took - log[len(log)-1].Duration
	}
	return over(added, func(d time.Duration) time.Duration { return d })
}

// duringRefresh compares reads during a slow refresh with those before and after it.
type duringRefresh struct {
	readers      int
	delay        time.Duration
	steady, slow figure[time.Duration] // the p99
	ratio        figure[float64]
	slowest      time.Duration
}

func benchRefresh(t *testing.T, m harness.Mount, sim *harness.Autopay, refreshes int) duringRefresh {
	t.Helper()
	const (
		readers = 8
		delay   = 3 * time.Second
		period  = 6 * time.Second
	)
	cred := sim.NewCredential()
	sim.SetLifetime(10 * time.Minute)
	sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: delay})
	defer sim.SetFault(autopaysim.Fault{})
	m.MustWrite(t, harness.ConfigPath("refreshed"), cred.Config("rotation_period", period.String()))
	on := newTarget("refreshed", m.Server, `"access_token":"sim.`, 0, m.At+"/"+harness.TokenPath("refreshed"))

	began := time.Now().Add(time.Second)
	end := began.Add(period * time.Duration(refreshes+1))
	samples := readUntil(t, on, readers, end, func() {})
	d := duringRefresh{readers: readers, delay: delay, slowest: over(samples, func(s sample) time.Duration { return s.took }).most}
	type pair struct{ steady, slow time.Duration }
	var pairs []pair
	rest := began // of the time without a refresh
	for _, entry := range sim.Log() {
		answered := entry.Time.Add(entry.Duration)
		if entry.ClientID != cred.ID || entry.Time.Before(began) || answered.After(end) {
			continue
		}
		steady := append(between(samples, rest, entry.Time), between(samples, answered, answered.Add(period-delay-time.Second))...)
		rest = answered
		pairs = append(pairs, pair{quantile(steady, .99), quantile(between(samples, entry.Time, answered), .99)})
	}
	if len(pairs) < refreshes-1 {
		t.Fatalf("%d refreshes, want about %d", len(pairs), refreshes)
	}
	d.steady = over(pairs, func(p pair) time.Duration { return p.steady })
	d.slow = over(pairs, func(p pair) time.Duration { return p.slow })
	d.ratio = over(pairs, func(p pair) float64 { return float64(p.slow) / float64(p.steady) })
	return d
}

func perSecond(r round) float64 { return r.rate }

func p50(r round) time.Duration { return r.p50 }

func p99(r round) time.Duration { return r.p99 }

func vaultTime(r round) time.Duration { return r.vault }

func pluginTime(r round) time.Duration { return r.plugin }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
