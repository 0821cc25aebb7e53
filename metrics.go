package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

const (
	metricsSynopsis    = "Read the metrics of all credentials, in Prometheus' text format."
	metricsDescription = `
For a scraper that holds a Vault token with read on this path. The body is
plain text, which "vault read" can't show: use HTTP. Labels hold the names of
credentials and nothing secret. Counters start at 0 with the plugin's process.
`
)

// What became of a token request, and what a read of a token was answered with.
var (
	requestOutcomes = [...]string{requestSuccess: "success", requestRefused: "refused", requestError: "error", requestLimited: "limited"}
	readOutcomes    = [...]string{readOK: "ok", readDegraded: "degraded", readError: "error"}
	states          = [...]string{stateOK, stateDegraded, stateFailing, statePending}
)

const (
	requestSuccess = iota
	requestRefused
	requestError
	requestLimited // the ledger held it back: none left
)

const (
	readOK       = iota
	readDegraded // a live token that can't be replaced
	readError
)

// durationBounds are the upper bounds of the histogram's buckets: a
// request_timeout is at most 60 s.
var durationBounds = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// counts tell what happened to one credential since the process started. They
// are a credential's own, so that they end with it. Safe for concurrent use.
type counts struct {
	requests [len(requestOutcomes)]atomic.Uint64
	reads    [len(readOutcomes)]atomic.Uint64
	within   [len(durationBounds) + 1]atomic.Uint64 // exchanges, by the first bound not exceeded
	took     atomic.Int64                           // all exchanges together, nanoseconds
}

// exchanged counts one exchange with Autopay, which brought f (nil: a token).
func (n *counts) exchanged(f *fault, took time.Duration) {
	outcome := requestSuccess
	switch {
	case f != nil && f.refused():
		outcome = requestRefused
	case f != nil:
		outcome = requestError
	}
	n.requests[outcome].Add(1)
	i := 0
	for i < len(durationBounds) && took > durationBounds[i] {
		i++
	}
	n.within[i].Add(1)
	n.took.Add(int64(took))
}

// histogram is what Prometheus makes of the exchanges' durations.
func (n *counts) histogram(name string) prometheus.Metric {
	var total uint64
	upTo := make(map[float64]uint64, len(durationBounds))
	for i := range n.within {
		total += n.within[i].Load()
		if i < len(durationBounds) {
			upTo[durationBounds[i].Seconds()] = total
		}
	}
	return prometheus.MustNewConstHistogram(descDuration, total, time.Duration(n.took.Load()).Seconds(), upTo, name)
}

var (
	descBuild    = prometheus.NewDesc("autopay_build_info", "Version of the engine; always 1.", []string{"version"}, nil)
	descRequests = perCredential("autopay_token_requests_total", "Token requests to Autopay by outcome: success, refused, error, or limited (wanted by an operator or by a reader without a live token, and held back by token_request_limit).", "outcome")
	descDuration = perCredential("autopay_token_request_duration_seconds", "Duration of exchanges with Autopay.")
	descExpiry   = perCredential("autopay_token_expiry_timestamp_seconds", "When Autopay stops honouring the last token. Absent without one.")
	descNext     = perCredential("autopay_token_next_rotation_timestamp_seconds", "When the next token is to be asked for, backoff and limit counted in. Absent without a token.")
	descState    = perCredential("autopay_credential_state", "1 for the state that the credential is in: ok, degraded, failing or pending.", "state")
	descFailures = perCredential("autopay_consecutive_failures", "Failed attempts since the last token.")
	descUsed     = perCredential("autopay_token_requests_24h", "Token requests in the last 24 hours that count towards the limit.")
	descLimit    = perCredential("autopay_token_request_limit", "Token requests allowed in any 24 hours; 0 is unlimited.")
	descReads    = perCredential("autopay_token_reads_total", "Reads of the token by outcome: ok, degraded (served, but it can't be replaced) or error.", "outcome")
)

func perCredential(metric, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(metric, help, append([]string{"name"}, labels...), nil)
}

// collector gathers a mount's metrics from what is in memory.
type collector struct{ b *backend }

// Describe implements prometheus.Collector. It tells nothing in advance: the
// series change with the credentials.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descBuild, prometheus.GaugeValue, 1, version)
	now := m.b.now()
	m.b.credentials.Range(func(_, v any) bool {
		c := v.(*credential)
		if s := c.snap.Load(); s != nil && (s.config != nil || s.damage != nil) {
			c.collect(ch, s, now)
		}
		return true
	})
}

func (c *credential) collect(ch chan<- prometheus.Metric, s *snapshot, now time.Time) {
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{c.name}, labels...)...)
	}
	n := c.counts.Load()
	for i, outcome := range requestOutcomes {
		send(descRequests, prometheus.CounterValue, float64(n.requests[i].Load()), outcome)
	}
	for i, outcome := range readOutcomes {
		send(descReads, prometheus.CounterValue, float64(n.reads[i].Load()), outcome)
	}
	ch <- n.histogram(c.name)
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

func (b *backend) pathMetrics() *framework.Path {
	return &framework.Path{
		Pattern:      "metrics",
		DisplayAttrs: &framework.DisplayAttributes{OperationPrefix: "autopay", OperationSuffix: "metrics"},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{
				Callback: b.pathMetricsRead,
				Summary:  metricsSynopsis,
				// The active node knows; a standby without readers does not.
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
func (b *backend) pathMetricsRead(
	context.Context,
	*logical.Request,
	*framework.FieldData,
) (*logical.Response, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{b}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
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
