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
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	promodel "github.com/prometheus/common/model"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// scrape reads the metrics path and returns the engine's samples by series,
// as in `autopay_token_requests_total{name="default",outcome="success"}`.
func (e *engine) scrape() map[string]float64 {
	e.t.Helper()
	resp, err := e.read("metrics")
	if err != nil {
		e.t.Fatal(err)
	}
	if kind := resp.Data[logical.HTTPContentType]; !strings.HasPrefix(kind.(string), "text/plain; version=0.0.4;") {
		e.t.Errorf("content type %v", kind)
	}
	body := resp.Data[logical.HTTPRawBody].([]byte)
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
		for _, m := range metrics.Metric {
			if strings.HasPrefix(family, "autopay_") {
				samples[series(family, m)] = value(m)
			}
		}
	}
	if families["go_goroutines"] == nil {
		e.t.Error("the process' own metrics are missing")
	}
	return samples
}

func series(family string, m *dto.Metric) string {
	labels := make([]string, len(m.Label))
	for i, l := range m.Label {
		labels[i] = fmt.Sprintf("%s=%q", l.GetName(), l.GetValue())
	}
	return family + "{" + strings.Join(labels, ",") + "}"
}

// value is that of a counter or gauge, or the number of a histogram's observations.
func value(m *dto.Metric) float64 {
	if m.Histogram != nil {
		return float64(m.Histogram.GetSampleCount())
	}
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// metricsHold compares series with what is wanted; -1 means that it must be absent.
func (e *engine) metricsHold(when string, want map[string]float64) {
	e.t.Helper()
	got := e.scrape()
	for _, s := range slices.Sorted(maps.Keys(want)) {
		if v, there := got[s]; there != (want[s] >= 0) || there && v != want[s] {
			e.t.Errorf("%s: %s is %v (there: %v), want %v", when, s, v, there, want[s])
		}
	}
}

func TestMetrics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: time.Hour, Clients: map[string]string{testID: testSecret, "other": testSecret}})
		now := float64(time.Now().Unix())
		if got := e.scrape(); len(got) != 1 || got[`autopay_build_info{version="`+version+`"}`] != 1 {
			t.Errorf("without credentials: %v", got)
		}

		e.configure("default")
		e.configure("later", "client_id", "other", "verify", false, "token_request_limit", 1)
		e.token("token")
		e.token("token/default")
		e.metricsHold("with a token", map[string]float64{
			`autopay_token_requests_total{name="default",outcome="success"}`: 1, `autopay_token_requests_total{name="default",outcome="refused"}`: 0,
			`autopay_token_requests_total{name="default",outcome="error"}`: 0, `autopay_token_requests_total{name="default",outcome="limited"}`: 0,
			`autopay_token_request_duration_seconds{name="default"}`: 1, `autopay_token_expiry_timestamp_seconds{name="default"}`: now + 3600,
			`autopay_token_next_rotation_timestamp_seconds{name="default"}`: now + 2700, `autopay_consecutive_failures{name="default"}`: 0,
			`autopay_credential_state{name="default",state="ok"}`: 1, `autopay_credential_state{name="default",state="degraded"}`: 0,
			`autopay_credential_state{name="default",state="failing"}`: 0, `autopay_credential_state{name="default",state="pending"}`: 0,
			`autopay_token_requests_24h{name="default"}`: 1, `autopay_token_request_limit{name="default"}`: 100,
			`autopay_token_reads_total{name="default",outcome="ok"}`: 2, `autopay_token_reads_total{name="default",outcome="degraded"}`: 0,
			`autopay_token_reads_total{name="default",outcome="error"}`: 0, `autopay_credential_state{name="later",state="pending"}`: 1,
			`autopay_token_requests_total{name="later",outcome="success"}`: 0, `autopay_token_expiry_timestamp_seconds{name="later"}`: -1,
			`autopay_token_next_rotation_timestamp_seconds{name="later"}`: -1, `autopay_token_request_duration_seconds{name="later"}`: 0,
			`autopay_token_request_limit{name="later"}`: 1,
		})

		// The refresh fails, and the live token is served until it dies.
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503, ClientID: testID})
		time.Sleep(46 * time.Minute)
		synctest.Wait()
		e.token("token")
		failed := e.scrape()
		if n := failed[`autopay_token_requests_total{name="default",outcome="error"}`]; n < 2 ||
			failed[`autopay_consecutive_failures{name="default"}`] != n ||
			failed[`autopay_token_request_duration_seconds{name="default"}`] != n+1 {
			t.Errorf("after failed refreshes: %v", failed)
		}
		e.metricsHold("in an outage", map[string]float64{
			`autopay_credential_state{name="default",state="degraded"}`:    1,
			`autopay_credential_state{name="default",state="ok"}`:          0,
			`autopay_token_reads_total{name="default",outcome="degraded"}`: 1,
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		if _, err := e.read("token"); err == nil {
			t.Error("a token was served after its life")
		}
		e.metricsHold("after the token's life", map[string]float64{
			`autopay_credential_state{name="default",state="failing"}`:  1,
			`autopay_token_reads_total{name="default",outcome="error"}`: 1,
			`autopay_token_reads_total{name="default",outcome="ok"}`:    2,
		})

		// A refusal, and a request that the limit prevents.
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401, ClientID: testID})
		e.token("token/later")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		e.wantCode(http.StatusServiceUnavailable)(e.write("rotate/later", nil))
		e.metricsHold("at the end", map[string]float64{
			`autopay_token_requests_total{name="default",outcome="refused"}`: 1,
			`autopay_token_requests_total{name="later",outcome="success"}`:   1,
			`autopay_token_requests_total{name="later",outcome="limited"}`:   1,
			`autopay_token_requests_24h{name="later"}`:                       1,
		})
		e.configure("later", "client_id", "other", "rotation_period", 5) // the token in hand stays
		time.Sleep(time.Hour)
		e.wantCode(http.StatusServiceUnavailable)(e.read("token/later"))
		e.metricsHold("at the limit", map[string]float64{
			`autopay_token_requests_total{name="later",outcome="limited"}`: 2,
			`autopay_token_reads_total{name="later",outcome="error"}`:      1,
			`autopay_token_next_rotation_timestamp_seconds{name="later"}`:  now + 106*60 + 86400,
		})

		// The series of a deleted credential end. A new one of that name starts at 0.
		if _, err := e.delete("config"); err != nil {
			t.Fatal(err)
		}
		for s := range e.scrape() {
			if strings.Contains(s, `"default"`) {
				t.Errorf("%s is there after the delete", s)
			}
		}
		e.sim.SetFault(autopaysim.Fault{})
		e.configure("default")
		e.metricsHold("after it was configured again", map[string]float64{
			`autopay_token_requests_total{name="default",outcome="success"}`: 1,
			`autopay_token_requests_total{name="default",outcome="error"}`:   0,
			`autopay_token_reads_total{name="default",outcome="ok"}`:         0,
			`autopay_token_request_duration_seconds{name="default"}`:         1,
		})
	})
}

// TestMetricsOfExchanges: the duration leaves out slow storage, and a token that came
// too late is no success.
func TestMetricsOfExchanges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: 2 * time.Second})
		e.storage.slow("put", 5*time.Second)
		e.sim.SetFault(delay(3 * time.Second))
		e.wantCode(http.StatusServiceUnavailable)(e.write("config", withSecret()))
		n := e.credential("default").counters.Load()
		var m dto.Metric
		if err := n.durations.Write(&m); err != nil {
			t.Fatal(err)
		}
		h := m.GetHistogram()
		if h.GetSampleSum() != 3 || h.Bucket[5].GetCumulativeCount() != 0 || h.Bucket[6].GetCumulativeCount() != 1 || h.Bucket[9].GetUpperBound() != 60 {
			t.Errorf("an exchange of 3 s is counted as %v", h)
		}
		if n.requests[requestSuccess].Load() != 0 || n.requests[requestError].Load() != 1 {
			t.Error("a token that had expired when it arrived counts as a success")
		}
	})
}
