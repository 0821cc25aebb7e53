package main

import (
	"sync/atomic"
	"time"
)

// What became of a token request.
const (
	requestSuccess = iota
	requestRefused
	requestError
	requestLimited // the ledger allowed none, so it was not sent
)

// What a read of a token was answered with.
const (
	readOK       = iota
	readDegraded // a live token that can't be replaced
	readError
)

// The values of the outcome label.
var (
	requestOutcomes = [...]string{requestSuccess: "success", requestRefused: "refused", requestError: "error", requestLimited: "limited"}
	readOutcomes    = [...]string{readOK: "ok", readDegraded: "degraded", readError: "error"}
)

// durationBounds are the upper bounds of the histogram's buckets. A
// request_timeout is at most 60 s.
var durationBounds = [...]time.Duration{
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// counters count what happened to one credential since the process started.
// They belong to the credential, so they end with it. Safe for concurrent use.
type counters struct {
	requests  [len(requestOutcomes)]atomic.Uint64
	reads     [len(readOutcomes)]atomic.Uint64
	exchanges [len(durationBounds) + 1]atomic.Uint64 // by the first bound that was not exceeded
	duration  atomic.Int64                           // of all exchanges together, nanoseconds
}

// countExchange counts one exchange with Autopay that brought x (nil: a token).
func (n *counters) countExchange(x *exchangeError, took time.Duration) {
	outcome := requestSuccess
	switch {
	case x != nil && x.kind == refusal:
		outcome = requestRefused
	case x != nil:
		outcome = requestError
	}
	n.requests[outcome].Add(1)
	i := 0
	for i < len(durationBounds) && took > durationBounds[i] {
		i++
	}
	n.exchanges[i].Add(1)
	n.duration.Add(int64(took))
}
