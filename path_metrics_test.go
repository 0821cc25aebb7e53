package main

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/common/expfmt"
	promodel "github.com/prometheus/common/model"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// scrape reads the metrics path and returns the engine's samples by name and values of
// labels, as in "token_requests_total default success".
func (e *engine) scrape() map[string]float64 {
	e.t.Helper()
	data := e.status("metrics")
	if kind := data[logical.HTTPContentType]; !strings.HasPrefix(kind.(string), "text/plain; version=0.0.4;") {
		e.t.Errorf("content type %v", kind)
	}
	body := data[logical.HTTPRawBody].([]byte)
	if strings.Contains(string(body), testSecret) || strings.Contains(string(body), "sim.") {
		e.t.Errorf("the metrics show a secret:\n%s", body)
	}
	parser := expfmt.NewTextParser(promodel.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		e.t.Fatalf("%v in\n%s", err, body)
	}
	samples := map[string]float64{}
	for family, metrics := range families {
		if name, ours := strings.CutPrefix(family, "autopay_"); ours {
			for _, m := range metrics.Metric {
				series := name
				for _, label := range m.Label {
					series += " " + label.GetValue()
				}
				samples[series] = m.GetCounter().GetValue() + m.GetGauge().GetValue() // one of them is 0
				if h := m.GetHistogram(); h != nil {
					samples[series], samples[series+" sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
					for _, bucket := range h.Bucket {
						samples[fmt.Sprint(series, " ", bucket.GetUpperBound())] = float64(bucket.GetCumulativeCount())
					}
				}
			}
		}
	}
	if families["go_goroutines"] == nil {
		e.t.Error("the process' own metrics are missing")
	}
	return samples
}

// absent is the value of a series that must not be there.
const absent = -1

// wantMetrics compares series with what is wanted.
func (e *engine) wantMetrics(when string, want map[string]float64) {
	e.t.Helper()
	got := e.scrape()
	for _, s := range slices.Sorted(maps.Keys(want)) {
		if v, there := got[s]; there == (want[s] == absent) || there && v != want[s] {
			e.t.Errorf("%s: %s is %v (there: %v), want %v", when, s, v, there, want[s])
		}
	}
}

func TestMetrics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: time.Hour})
		e.sim.SetClient("other", testSecret)
		now := float64(time.Now().Unix())
		if got := e.scrape(); len(got) != 1 || got["build_info "+version] != 1 {
			t.Errorf("without credentials: %v", got)
		}

		e.configure("default")
		e.configure("later", "client_id", "other", "verify", false, "token_request_limit", 1)
		e.token("token")
		e.token("token/default")
		e.wantMetrics("with a token", map[string]float64{
			"token_requests_total default success": 1, "token_requests_total default refused": 0,
			"token_requests_total default error": 0, "token_requests_total default limited": 0,
			"token_request_duration_seconds default": 1, "consecutive_failures default": 0,
			"token_expiry_timestamp_seconds default": now + 3600, "token_next_rotation_timestamp_seconds default": now + 2700,
			"credential_state default ok": 1, "credential_state default degraded": 0,
			"credential_state default failing": 0, "credential_state default pending": 0,
			"token_requests_24h default": 1, "token_request_limit default": 100,
			"token_reads_total default ok": 2, "token_reads_total default degraded": 0, "token_reads_total default error": 0,
			"token_requests_total later success": 0, "token_request_duration_seconds later": 0,
			"token_expiry_timestamp_seconds later": absent, "token_next_rotation_timestamp_seconds later": absent,
			"credential_state later pending": 1, "token_request_limit later": 1,
		})

		// The refresh fails, and the live token is served until it dies.
		failing := func(code int) {
			f := status(code)
			f.ClientID = testID
			e.sim.SetFault(f)
		}
		failing(503)
		time.Sleep(46 * time.Minute)
		synctest.Wait()
		e.token("token")
		n := e.scrape()["consecutive_failures default"]
		if n < 2 {
			t.Errorf("%v failures in a minute", n)
		}
		e.wantMetrics("in an outage", map[string]float64{
			"token_requests_total default error": n, "token_request_duration_seconds default": n + 1,
			"credential_state default degraded": 1, "credential_state default ok": 0,
			"token_reads_total default degraded": 1,
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		e.wantCode(http.StatusServiceUnavailable)(e.read("token"))
		e.wantMetrics("after the token's life", map[string]float64{
			"credential_state default failing": 1, "token_reads_total default error": 1, "token_reads_total default ok": 2,
		})

		// A refusal, and a request that the limit prevents.
		failing(401)
		e.token("token/later")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		e.wantCode(http.StatusServiceUnavailable)(e.write("rotate/later", nil))
		e.wantMetrics("at the end", map[string]float64{
			"token_requests_total default refused": 1, "token_requests_total later success": 1,
			"token_requests_total later limited": 1, "token_requests_24h later": 1,
		})
		e.configure("later", "client_id", "other", "rotation_period", 5) // the current token stays
		time.Sleep(time.Hour)
		e.wantCode(http.StatusServiceUnavailable)(e.read("token/later"))
		e.wantMetrics("at the limit", map[string]float64{
			"token_requests_total later limited": 2, "token_reads_total later error": 1,
			"token_next_rotation_timestamp_seconds later": now + 106*60 + 86400,
		})

		// The series of a deleted credential end. A new one of that name starts at 0.
		e.forget("default")
		for s := range e.scrape() {
			if strings.Contains(s, " default") {
				t.Errorf("%s is there after the delete", s)
			}
		}
		e.sim.SetFault(autopaysim.Fault{})
		e.configure("default")
		e.wantMetrics("after it was configured again", map[string]float64{
			"token_requests_total default success": 1, "token_requests_total default error": 0,
			"token_reads_total default ok": 0, "token_request_duration_seconds default": 1,
		})
	})
}

// TestMetricsOfExchanges: the duration leaves out slow storage, and a token that came
// too late is no success.
func TestMetricsOfExchanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: 2 * time.Second})
		e.configure("default", "verify", false)
		e.storage.slow("put", 5*time.Second)
		e.sim.SetFault(delay(3 * time.Second))
		e.wantCode(http.StatusServiceUnavailable)(e.read("token"))
		e.wantMetrics("after an exchange of 3 s", map[string]float64{
			"token_requests_total default success": 0, "token_requests_total default error": 1,
			"token_request_duration_seconds default": 1, "token_request_duration_seconds default sum": 3,
			"token_request_duration_seconds default 2.5": 0, "token_request_duration_seconds default 5": 1,
			"token_request_duration_seconds default 60": 1,
		})
		// An exchange that its request_timeout of 60 s ends takes a little longer.
		e.known("default").counters.Load().countExchange(nil, time.Minute+1)
		e.wantMetrics("after an exchange of more than a minute", map[string]float64{
			"token_request_duration_seconds default": 2, "token_request_duration_seconds default 60": 1,
		})
	})
}
