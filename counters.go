package main

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Outcomes of a token request.
const (
	requestSuccess = iota
	requestRefused
	requestError
	requestLimited // the ledger allowed none, so it was not sent
)

// Outcomes of a read.
const (
	readOK       = iota
	readDegraded // a live token that can't be replaced
	readError
)

// Values of the outcome label.
var (
	requestOutcomes = [...]string{requestSuccess: "success", requestRefused: "refused", requestError: "error", requestLimited: "limited"}
	readOutcomes    = [...]string{readOK: "ok", readDegraded: "degraded", readError: "error"}
)

// counters count what happened to one credential since the process started. They
// belong to the credential, so they end with it. They are safe for concurrent use.
type counters struct {
	requests  [len(requestOutcomes)]atomic.Uint64
	reads     [len(readOutcomes)]atomic.Uint64
	durations prometheus.Histogram // of the exchanges with Autopay, in seconds
}

func newCounters(name string) *counters {
	return &counters{durations: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:        "autopay_token_request_duration_seconds",
		Help:        "Duration of exchanges with Autopay.",
		ConstLabels: prometheus.Labels{"name": name},
		Buckets:     []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}, // a request_timeout is at most 60 s
	})}
}

// countExchange counts one exchange with Autopay that ended with x (nil: a token).
func (n *counters) countExchange(x *exchangeError, took time.Duration) {
	outcome := requestSuccess
	switch {
	case x != nil && x.kind == refusal:
		outcome = requestRefused
	case x != nil:
		outcome = requestError
	}
	n.requests[outcome].Add(1)
	n.durations.Observe(took.Seconds())
}
