//go:build acceptance

package bench

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// sample is one read: when it was sent, and how long the answer took.
type sample struct {
	sent time.Time
	took time.Duration
}

// between returns how long the reads took that began and ended between two
// moments.
func between(samples []sample, from, to time.Time) (times []time.Duration) {
	for _, s := range samples {
		if s.sent.After(from) && s.sent.Add(s.took).Before(to) {
			times = append(times, s.took)
		}
	}
	return times
}

// quantile sorts the times and returns their quantile q, such as 0.99.
func quantile(times []time.Duration, q float64) time.Duration {
	slices.Sort(times)
	return times[int(float64(len(times)-1)*q)]
}

// TestSlowRefresh has 200 readers in a closed loop while Autopay takes 5 s over
// every refresh, and the next refresh is due 2 s later. Reads during each refresh
// are compared with reads right before and after it, so that other load on the
// machine affects both. It needs the machine for itself, so it is not parallel.
func TestSlowRefresh(t *testing.T) {
	const (
		readers = 200
		rounds  = 5
		delay   = 5 * time.Second
		period  = 7 * time.Second
		most    = 1.5 // ratio of the p99 during a refresh to the steady p99
	)
	m := harness.EnableAt(t, harness.StartVault(t), "autopay")
	quieten(t, m.Server)
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	p.SetLifetime(10 * time.Minute)
	m.MustWrite(t, "config", cred.Config("rotation_period", period.String()))
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: delay})

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	samples, loops := make([][]sample, readers), sync.WaitGroup{}
	client := plainClient(t, m.Server, readers)
	for i := range readers {
		loops.Go(func() {
			for ctx.Err() == nil {
				sent := time.Now()
				secret, err := client.Logical().ReadWithContext(ctx, m.At+"/token")
				if ctx.Err() != nil {
					return
				}
				if err != nil || secret == nil || !p.Valid(fmt.Sprint(secret.Data["access_token"])) {
					t.Errorf("read: %v, %v", secret, err)
					return
				}
				samples[i] = append(samples[i], sample{sent, time.Since(sent)})
			}
		})
	}
	began := time.Now().Add(time.Second) // when all connections are open
	// The first request was that of the config write; the last slow one ends the run.
	harness.Eventually(t, period*(rounds+1)+10*time.Second, "too few refreshes", func() bool { return p.Requests(cred.ID) == rounds+2 })
	stop()
	loops.Wait()

	all := slices.Concat(samples...)
	slowest := slices.MaxFunc(all, func(a, b sample) int { return cmp.Compare(a.took, b.took) })
	if slowest.took > delay/2 {
		t.Errorf("a read took %v where a refresh takes %v: it waited for it", slowest.took, delay)
	}
	var ratios []float64
	var steady50, steady99, slow50, slow99 []time.Duration
	rest := began // of the time without a refresh
	for round, refresh := range p.Log()[1 : rounds+1] {
		answered := refresh.Time.Add(refresh.Duration)
		due := refresh.Time.Truncate(time.Second).Add(period)
		slow := between(all, refresh.Time, answered)
		steady := append(between(all, rest, refresh.Time), between(all, answered, due)...)
		rest = answered
		if len(slow) < 1000 || len(steady) < 1000 {
			t.Fatalf("round %d: %d reads during the refresh, %d around it", round+1, len(slow), len(steady))
		}
		slow50, slow99 = append(slow50, quantile(slow, .5)), append(slow99, quantile(slow, .99))
		steady50, steady99 = append(steady50, quantile(steady, .5)), append(steady99, quantile(steady, .99))
		ratios = append(ratios, float64(slow99[round])/float64(steady99[round]))
		t.Logf("round %d: %d reads during the refresh, p50 %v p99 %v; %d around it, p50 %v p99 %v", round+1,
			len(slow), slow50[round], slow99[round], len(steady), steady50[round], steady99[round])
	}
	slices.Sort(ratios)
	ratio := ratios[len(ratios)/2]
	if ratio > most {
		t.Errorf("p99 during a slow refresh is %.2f times the steady one, at most %.1f is right", ratio, most)
	}
	ms := func(times []time.Duration) float64 { return float64(quantile(times, .5).Microseconds()) / 1000 }
	t.Logf("FIGURE: %d readers, %d reads, provider takes 5 s over a refresh: steady p50 %.1f ms, p99 %.1f ms; during the refresh p50 %.1f ms, "+
		"p99 %.1f ms; p99 ratio %.2f (median of %d rounds), slowest of all %v", readers, len(all), ms(steady50), ms(steady99), ms(slow50), ms(slow99),
		ratio, rounds, slowest.took.Round(time.Millisecond))
}

// quieten turns off the trace log and the audit, which would be hundreds of
// megabytes here.
func quieten(t *testing.T, s *harness.Server) {
	t.Helper()
	if _, err := s.Root().Logical().WriteWithContext(t.Context(), "sys/loggers", map[string]any{"level": "info"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Root().Sys().DisableAuditWithContext(t.Context(), "file"); err != nil {
		t.Fatal(err)
	}
}

// plainClient returns the official client without the search for secrets, which
// takes as long as Vault itself. It keeps a connection for each of n readers.
func plainClient(t *testing.T, s *harness.Server, n int) *api.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: n}
	t.Cleanup(transport.CloseIdleConnections)
	config := s.Root().CloneConfig()
	config.HttpClient = &http.Client{Transport: transport}
	client, err := api.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(s.RootToken)
	return client
}
