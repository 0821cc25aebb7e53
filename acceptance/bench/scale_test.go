//go:build acceptance && bench && linux

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// scale is one server with many credentials or mounts, in one plugin process.
type scale struct {
	mounts, names int // credentials, in all mounts together
	rounds        []round
	memory        float64               // MB of the plugin, after the load
	unsealed      figure[time.Duration] // from unseal to the first token
	added         figure[time.Duration] // of that, after Vault's own first answer
	tick          time.Duration         // the slowest of Vault's periodic calls; 0: none was seen
}

// benchScale measures one server for each number of credentials, and one with many
// mounts. The rounds of reads take turns between the servers.
func benchScale(t *testing.T, p plan, r *report) {
	t.Helper()
	sim := harness.StartAutopayBanning(t, 0)
	var targets []target
	for _, names := range p.names {
		r.scale = append(r.scale, scale{mounts: 1, names: names})
	}
	r.scale = append(r.scale, scale{mounts: p.mounts, names: p.mounts})
	for _, sc := range r.scale {
		began := time.Now()
		s := benchServer(t, fmt.Sprintf("scale%d", len(targets)), "warn", true)
		paths := fill(t, s, sim, sc)
		targets = append(targets, newTarget(fmt.Sprintf("%d mounts, %d credentials", sc.mounts, sc.names), s, `"access_token":"sim.`, onlyPlugin(t, s), paths...))
		t.Logf("%d mounts, %d credentials, ready in %v", sc.mounts, sc.names, time.Since(began).Round(time.Second))
	}

	slowest := watchTicks(t, targets)
	results := interleave(t, p, targets, 8)
	for i := range r.scale {
		sc, on := &r.scale[i], &targets[i]
		sc.rounds = results[i]
		sc.memory = memory(t, on.plugin)
	}
	for i, tick := range slowest() {
		r.scale[i].tick = tick
	}
	for i := range r.scale {
		sc, on := &r.scale[i], targets[i]
		type pair struct{ first, added time.Duration }
		pairs := make([]pair, p.unseals)
		for j := range pairs {
			pairs[j].first, pairs[j].added = unsealAndRead(t, on)
		}
		sc.unsealed = over(pairs, func(p pair) time.Duration { return p.first })
		sc.added = over(pairs, func(p pair) time.Duration { return p.added })
		t.Logf("BENCH: %s: %.0f reads/s, %.2f of one; plugin %.1f MB; first read %.0f ms after unseal, %.0f ms after Vault's own; slowest tick %.1f ms",
			on.name, over(sc.rounds, perSecond).median, ratio(sc.rounds, r.scale[0].rounds, perSecond).median, sc.memory,
			ms(sc.unsealed.median), ms(sc.added.median), ms(sc.tick))
	}
}

// fill mounts and configures the credentials, with 32 writers, and returns the paths
// of their tokens.
func fill(t *testing.T, s *harness.Server, sim *harness.Autopay, sc scale) []string {
	t.Helper()
	mounts := make([]harness.Mount, sc.mounts)
	for i := range mounts {
		mounts[i] = harness.EnableAt(t, s, fmt.Sprintf("autopay%d", i))
	}
	cred := sim.NewCredential()
	paths := make([]string, sc.names)
	var next atomic.Int64
	var writers sync.WaitGroup
	for range 32 {
		writers.Go(func() {
			for i := next.Add(1) - 1; i < int64(sc.names); i = next.Add(1) - 1 {
				at := mounts[i%int64(len(mounts))].At
				name := fmt.Sprintf("operator-%d", i)
				paths[i] = at + "/" + harness.TokenPath(name)
				a, err := s.Call(t.Context(), s.RootToken, http.MethodPut, at+"/"+harness.ConfigPath(name), cred.Config())
				if err != nil || a.Status/100 != 2 {
					t.Errorf("config of %s: %v, %v", name, a, err)
					return
				}
			}
		})
	}
	writers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return paths
}

// watchTicks asks Vault how long its periodic calls take. The function that it
// returns ends this once each server has made one, and returns the slowest. Vault
// counts all mounts in one sample; ours is the slowest of them.
func watchTicks(t *testing.T, targets []target) func() []time.Duration {
	t.Helper()
	slowest := make([]time.Duration, len(targets))
	enough, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		began := time.Now()
		every := time.NewTicker(5 * time.Second)
		defer every.Stop()
		for {
			for i, on := range targets {
				slowest[i] = max(slowest[i], slowestTick(on.server))
			}
			select {
			case <-enough:
				if time.Since(began) > 75*time.Second {
					return
				}
				<-every.C
			case <-every.C:
			}
		}
	}()
	return func() []time.Duration {
		close(enough)
		<-done
		return slowest
	}
}

// slowestTick returns the slowest periodic call in Vault's latest interval of 10 s, or 0 if there was none.
func slowestTick(s *harness.Server) time.Duration {
	secret, err := s.Root().Logical().ReadRawWithData("sys/metrics", nil)
	if err != nil {
		return 0
	}
	defer secret.Body.Close()
	var metrics struct {
		Samples []struct {
			Name string
			Max  float64 // milliseconds
		}
	}
	if secret.DecodeJSON(&metrics) != nil {
		return 0
	}
	var most time.Duration
	for _, sample := range metrics.Samples {
		if sample.Name == "vault.rollback.attempt" {
			most = max(most, time.Duration(sample.Max*float64(time.Millisecond)))
		}
	}
	return most
}

// unsealAndRead seals the server and measures the time from the unseal to the first
// token, and how much of it was after Vault's own first answer.
func unsealAndRead(t *testing.T, on target) (first, added time.Duration) {
	t.Helper()
	s := on.server
	s.Seal(t)
	self := newTarget("vault", s, s.RootToken, 0, "auth/token/lookup-self")
	began := time.Now()
	unsealing := make(chan error, 1)
	go func() {
		_, err := s.Client("").Sys().Unseal(s.UnsealKey)
		unsealing <- err
	}()
	times := make(chan time.Duration, 1)
	go func() {
		times <- firstAnswer(self, 0, began)
	}()
	first = firstAnswer(on, len(on.requests)/2, began)
	vault := <-times
	if err := <-unsealing; err != nil {
		t.Fatal(err)
	}
	if first == 0 || vault == 0 {
		t.Fatalf("%s: no answer after the unseal", on.name)
	}
	return first, max(0, first-vault)
}

// firstAnswer sends a request every 2 ms and returns when the first good answer came, or 0 if none came within a minute.
func firstAnswer(on target, request int, began time.Time) time.Duration {
	for time.Since(began) < time.Minute {
		client, err := dial(on.server.Addr)
		if err == nil {
			err = client.get(on.requests[request], on.expect)
			client.conn.Close()
		}
		if err == nil {
			return time.Since(began)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0
}

// soaked is a long load with refreshes.
type soaked struct {
	took      time.Duration
	readers   int
	names     int
	reads     int
	refreshes int
	parts     []soakPart
	// Goroutines of the first plugin process after half a minute at most, and of the second one at the end.
	goroutines [2]int
}

// soakPart is a tenth of the whole.
type soakPart struct {
	at        time.Duration
	rate      float64
	memory    float64 // MB
	openFiles int
}

// benchSoak reads for a long time while tokens are replaced all the time. It counts
// the goroutines with SIGQUIT, which ends the plugin process: once early, and once
// at the end for the process that follows.
func benchSoak(t *testing.T, p plan, r *report) {
	t.Helper()
	s := benchServer(t, "soak", "debug", true) // at warn the server drops the list of goroutines

	sim := harness.StartAutopayBanning(t, 0)
	sim.SetLifetime(10 * time.Minute)
	m := harness.EnableAt(t, s, "autopay")
	cred := sim.NewCredential()
	r.soak = soaked{took: p.soak, readers: 8, names: 20}
	paths := make([]string, r.soak.names)
	for i := range paths {
		name := fmt.Sprintf("operator-%d", i)
		m.MustWrite(t, harness.ConfigPath(name), cred.Config("rotation_period", "5s", "token_request_limit", 0))
		paths[i] = m.At + "/" + harness.TokenPath(name)
	}
	on := newTarget("soak", s, `"access_token":"sim.`, 0, paths...)
	read := func(d time.Duration) int {
		return len(readUntil(t, on, r.soak.readers, time.Now().Add(d), func() {}))
	}

	read(min(30*time.Second, p.soak/10))
	r.soak.goroutines[0] = countGoroutines(t, s)
	harness.Eventually(t, 10*time.Second, "no answer after the plugin ended", func() bool {
		a, err := m.Call(t.Context(), s.RootToken, http.MethodGet, paths[0], nil)
		return err == nil && a.Status == http.StatusOK
	})
	asked := sim.Requests(cred.ID)
	pid := onlyPlugin(t, s)
	const parts = 10
	for i := range parts {
		n := read(p.soak / parts)
		part := soakPart{p.soak / parts * time.Duration(i+1), float64(n) / (p.soak / parts).Seconds(), memory(t, pid), openFiles(t, pid)}
		r.soak.reads += n
		r.soak.parts = append(r.soak.parts, part)
		t.Logf("BENCH: soak, %v: %.0f reads/s, plugin %.1f MB, %d open files", part.at.Round(time.Second), part.rate, part.memory, part.openFiles)
	}
	r.soak.refreshes = sim.Requests(cred.ID) - asked
	if got := onlyPlugin(t, s); got != pid {
		t.Fatalf("the plugin was process %d and is %d", pid, got)
	}
	r.soak.goroutines[1] = countGoroutines(t, s)
	t.Logf("BENCH: soak: %d reads, %d refreshes, %d goroutines early and %d at the end", r.soak.reads, r.soak.refreshes, r.soak.goroutines[0], r.soak.goroutines[1])
}

var goroutine = regexp.MustCompile(`goroutine [1-9]\d* (gp=\S+ )?(m=\S+ )?(mp=\S+ )?\[`)

// countGoroutines ends the plugin process, which Vault starts again, so that
// the Go runtime writes its goroutines to the server's log.
func countGoroutines(t *testing.T, s *harness.Server) int {
	t.Helper()
	pid := onlyPlugin(t, s)
	if err := os.Truncate(s.Path("server.log"), 0); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	var log []byte
	err := harness.Poll(20*time.Second, func() (err error) {
		if log, err = os.ReadFile(s.Path("server.log")); err != nil {
			return err
		}
		// The runtime writes the registers last.
		if !bytes.Contains(log, []byte("rip ")) && !bytes.Contains(log, []byte("plugin process exited")) {
			return errors.New("no end of the goroutines in the server's log")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := len(goroutine.FindAll(log, -1))
	if n == 0 {
		t.Fatalf("no goroutines in the server's log:\n%s", log)
	}
	return n
}
