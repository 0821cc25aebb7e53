//go:build acceptance

package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// startVault runs a server without trace log and audit, which would take more
// time than the reads.
func startVault(t *testing.T) *harness.Server {
	t.Helper()
	s := harness.StartVault(t)
	_, err := s.Root().Logical().WriteWithContext(t.Context(), "sys/loggers", map[string]any{"level": "warn"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Root().Sys().DisableAuditWithContext(t.Context(), "file"); err != nil {
		t.Fatal(err)
	}
	return s
}

// get reads a path. The answer must be a 200 with a token of the simulator.
func get(ctx context.Context, client *http.Client, s *harness.Server, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Addr+"/v1/"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", s.RootToken)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"access_token":"sim.`))) {
		err = fmt.Errorf("%s: %s %s", path, resp.Status, body)
	}
	return err
}

// sample is one read: when it was sent, and how long the answer took.
type sample struct {
	sent time.Time
	took time.Duration
}

// readUntil runs readers in a closed loop until the end, and returns all their reads.
func readUntil(t *testing.T, s *harness.Server, paths []string, readers int, end time.Time) []sample {
	t.Helper()
	// A plain client: the harness's searches each answer for secrets, which takes as long as Vault itself.
	transport := &http.Transport{MaxIdleConnsPerHost: readers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	samples, loops := make([][]sample, readers), sync.WaitGroup{}
	for i := range readers {
		loops.Go(func() {
			// With a prime stride each reader has an order of its own.
			for n := i * len(paths) / readers; ; n += 7919 {
				sent := time.Now()
				if sent.After(end) {
					return
				}
				if err := get(t.Context(), client, s, paths[n%len(paths)]); err != nil {
					t.Error(err)
					return
				}
				samples[i] = append(samples[i], sample{sent, time.Since(sent)})
			}
		})
	}
	loops.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return slices.Concat(samples...)
}

// between returns how many milliseconds the reads took that began and ended between
// two moments, in ascending order. It fails the test if they are too few for a p99.
func between(t *testing.T, samples []sample, from, to time.Time) (times []float64) {
	t.Helper()
	for _, s := range samples {
		if s.sent.After(from) && s.sent.Add(s.took).Before(to) {
			times = append(times, ms(s.took))
		}
	}
	if len(times) < 100 {
		t.Fatalf("%d reads in %v", len(times), to.Sub(from))
	}
	slices.Sort(times)
	return times
}

// p99 is the 99th percentile of values in ascending order.
func p99(values []float64) float64 { return values[len(values)*99/100] }

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// figure is the median of several rounds, with the minimum and the maximum.
type figure struct{ median, least, most float64 }

func over(rounds []float64) figure {
	sorted := slices.Sorted(slices.Values(rounds))
	return figure{sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1]}
}

// ratio is that of two figures within each round.
func ratio(a, b []float64) figure {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i] / b[i]
	}
	return over(ratios)
}

// text prints a figure with a number of decimals.
func (f figure) text(decimals int) string {
	return fmt.Sprintf("%.*f (%.*f–%.*f)", decimals, f.median, decimals, f.least, decimals, f.most)
}
