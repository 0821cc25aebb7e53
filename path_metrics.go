package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

const (
	metricsSynopsis    = "Read the metrics of all credentials, in the Prometheus text format."
	metricsDescription = `
Scrape this path with a Vault token that has the read capability on it. The
response is plain text: use an HTTP client or "vault read -format=raw". Labels
hold the names of credentials and nothing secret. Counters reset when the plugin's
process restarts and when a credential is deleted.
`
)

// states are the values of the state label.
var states = [...]string{stateOK, stateDegraded, stateFailing, statePending}

var (
	descBuild = prometheus.NewDesc("autopay_build_info", "Version of the engine; always 1.", []string{"version"}, nil)

	descRequests = perCredential("autopay_token_requests_total",
		"Token requests to Autopay by outcome: success, refused, error, or limited (wanted by an operator or by a "+
			"reader without a live token, and held back by token_request_limit).", "outcome")
	descDuration = perCredential("autopay_token_request_duration_seconds", "Duration of token requests, in seconds.")
	descReads    = perCredential("autopay_token_reads_total",
		"Reads of the token by outcome: ok, degraded (served, but it can't be replaced) or error.", "outcome")
	descState = perCredential("autopay_credential_state",
		"1 for the state that the credential is in: ok, degraded, failing or pending.", "state")
	descExpiry = perCredential("autopay_token_expiry_timestamp_seconds",
		"When Autopay stops honoring the last token. Absent without one.")
	descNext = perCredential("autopay_token_next_rotation_timestamp_seconds",
		"Time of the next token request, including backoff and request limit. Absent without a token.")
	descFailures = perCredential("autopay_consecutive_failures", "Failed attempts since the last token.")
	descUsed     = perCredential("autopay_token_requests_24h",
		"Token requests in the last 24 hours that count towards the limit.")
	descLimit = perCredential("autopay_token_request_limit",
		"Token requests allowed in any 24 hours; 0 is unlimited.")
)

// perCredential describes a metric whose first label is the credential's name.
func perCredential(metric, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metric, help, append([]string{"name"}, labels...), nil)
}

// Describe implements prometheus.Collector. It describes no metrics in advance,
// because the set of series depends on the configured credentials.
func (m *mount) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector, from what is in memory.
func (m *mount) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descBuild, prometheus.GaugeValue, 1, version)
	now := m.now()
	m.credentials.Range(func(_, v any) bool {
		c := v.(*credential)
		if s := c.snap.Load(); s.exists() {
			collect(ch, c, s, now)
		}
		return true
	})
}

// collect sends the metrics of one credential. Every gauge is computed from the snapshot
// when Prometheus asks, so no gauge can disagree with status or with another, even while
// a refresh ends. Only counters are kept (credential.go). The labels name the credential
// and an outcome or state, never a client ID.
func collect(ch chan<- prometheus.Metric, c *credential, s *snapshot, now time.Time) {
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{c.name}, labels...)...)
	}
	n := c.counters.Load()
	for i, outcome := range requestOutcomes {
		send(descRequests, prometheus.CounterValue, float64(n.requests[i].Load()), outcome)
	}
	for i, outcome := range readOutcomes {
		send(descReads, prometheus.CounterValue, float64(n.reads[i].Load()), outcome)
	}
	count, buckets := uint64(0), map[float64]uint64{}
	for i, bound := range durationBuckets {
		count += n.exchanges[i].Load()
		buckets[bound] = count
	}
	count += n.exchanges[len(durationBuckets)].Load()
	seconds := time.Duration(n.duration.Load()).Seconds()
	ch <- prometheus.MustNewConstHistogram(descDuration, count, seconds, buckets, c.name)
	current := s.state(now)
	for _, state := range states {
		in := 0.0
		if state == current {
			in = 1
		}
		send(descState, prometheus.GaugeValue, in, state)
	}
	if s.config == nil {
		return // damaged
	}
	if s.entry.AccessToken != "" {
		send(descExpiry, prometheus.GaugeValue, float64(s.entry.ExpireTime.Unix()))
		send(descNext, prometheus.GaugeValue, float64(s.dueAt().Unix()))
	}
	failures := 0
	if f := s.problem(now); f != nil {
		failures = f.Count
	}
	send(descFailures, prometheus.GaugeValue, float64(failures))
	send(descUsed, prometheus.GaugeValue, float64(s.entry.requestsAt(now)))
	send(descLimit, prometheus.GaugeValue, float64(s.config.TokenRequestLimit))
}

func (m *mount) pathMetrics() *framework.Path {
	return &framework.Path{
		Pattern:      "metrics",
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: "autopay", OperationSuffix: "metrics"},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: m.pathMetricsRead,
				Summary:  metricsSynopsis,
				// Only the active node has current values. A standby refreshes its snapshots
				// only when it serves reads.
				ForwardPerformanceStandby: true,
				Responses: map[int][]framework.Response{http.StatusOK: {{
					Description: "OK", MediaType: "text/plain",
				}}},
			},
		},
		HelpSynopsis:    metricsSynopsis,
		HelpDescription: metricsDescription,
	}
}

// pathMetricsRead corresponds to READ on autopay/metrics.
func (m *mount) pathMetricsRead(
	context.Context,
	*logical.Request,
	*framework.FieldData,
) (*logical.Response, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(m, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gathering metrics: %w", err)
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	var body bytes.Buffer
	encoder := expfmt.NewEncoder(&body, format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return nil, fmt.Errorf("encoding metrics: %w", err)
		}
	}
	return &logical.Response{Data: map[string]any{
		logical.HTTPStatusCode:  http.StatusOK,
		logical.HTTPContentType: string(format),
		logical.HTTPRawBody:     body.Bytes(),
	}}, nil
}
