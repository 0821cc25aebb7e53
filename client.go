package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxAnswerSize  = 1 << 20          // bytes of an answer's body
	maxTokenSize   = 64 << 10         // bytes; the token goes into a header
	maxLifetime    = 3650 * 24 * 3600 // seconds: ten years
	maxErrorText   = 200              // characters of Autopay's own words
	maxRetryAfter  = time.Hour        // how long Autopay may ask us to wait
	maxHeaderBytes = 64 << 10         // of an answer
)

// tokenRequest is what one exchange needs to know.
type tokenRequest struct {
	tokenURL     string
	clientID     string
	clientSecret string
	audience     string
	caCert       string        // PEM; "" trusts the system's roots
	timeout      time.Duration // for the whole exchange
}

// tokenAnswer is a token as Autopay gave it.
type tokenAnswer struct {
	accessToken string
	scope       string
	lifetime    time.Duration // whole seconds, from before the request was sent
}

// fault says why an exchange brought no token. Its text is safe to show: it
// never holds the secret, a token or a raw answer.
type fault struct {
	text       string
	status     int           // HTTP status for who waits: 502 for a refused credential, 500 for storage, else 503
	noToken    bool          // it is certain that Autopay issued no token
	retryAfter time.Duration // Autopay's wish, at most an hour; 0: none
}

// Error implements error.
func (f *fault) Error() string { return f.text }

// refused reports that Autopay refused the credential: a 4xx but 408 and 429.
func (f *fault) refused() bool { return f.status == http.StatusBadGateway }

// client talks to the token endpoint. It knows nothing of Vault.
type client struct {
	now       func() time.Time
	transport http.RoundTripper // nil: a fresh one for each exchange
}

// exchange trades a client ID and secret for a token, in one request that is
// never repeated here. The connection is not kept: exchanges are hours apart.
func (c *client) exchange(ctx context.Context, r tokenRequest) (tokenAnswer, *fault) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var connected atomic.Bool // set once a connection, TLS included, stands
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})

	body, err := json.Marshal(map[string]string{
		"client_id":     r.clientID,
		"client_secret": r.clientSecret,
		"audience":      r.audience,
		"grant_type":    "client_credentials",
	})
	if err != nil {
		return tokenAnswer{}, unsent("the token request can't be encoded")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.tokenURL, bytes.NewReader(body))
	if err != nil {
		return tokenAnswer{}, unsent("token_url can't be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "vault-plugin-secrets-autopay/"+version)

	transport := c.transport
	if transport == nil {
		fresh, err := newTransport(r.caCert)
		if err != nil {
			return tokenAnswer{}, unsent("ca_cert can't be used")
		}
		defer fresh.CloseIdleConnections()
		transport = fresh
	}
	// Not through an http.Client: a redirect would carry the secret elsewhere,
	// and one that can't be parsed would hide the answer that came.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return tokenAnswer{}, brokenExchange(ctx, r, err, connected.Load())
	}
	defer resp.Body.Close() //nolint:errcheck // only read from
	var answer []byte
	if resp.StatusCode != http.StatusSwitchingProtocols { // its body is the bare connection, which no deadline ends
		answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerSize+1))
	}
	if err != nil && resp.StatusCode/100 == 2 {
		return tokenAnswer{}, brokenExchange(ctx, r, err, true)
	}
	if resp.StatusCode != http.StatusOK {
		return tokenAnswer{}, c.errorAnswer(resp, answer, r.clientSecret)
	}
	token, problem := parseToken(resp.Header.Get("Content-Type"), answer)
	if problem != "" {
		return tokenAnswer{}, &fault{text: "Autopay sent a malformed answer: " + problem, status: http.StatusServiceUnavailable}
	}
	return token, nil
}

// unsent is the fault of a request that never left.
func unsent(text string) *fault {
	return &fault{text: text, status: http.StatusServiceUnavailable, noToken: true}
}

// newTransport makes a transport for one exchange.
func newTransport(caCert string) (*http.Transport, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if caCert != "" {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM([]byte(caCert)) {
			return nil, errors.New("no certificate in the PEM data")
		}
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment, // never for a loopback host
		TLSClientConfig:        tlsConfig,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}, nil
}

// brokenExchange describes an exchange that ended without a whole answer. It
// passes on no text of net/http, which quotes bytes of the answer.
func brokenExchange(ctx context.Context, r tokenRequest, err error, connected bool) *fault {
	f := &fault{status: http.StatusServiceUnavailable, noToken: !connected}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		f.text = fmt.Sprintf("Autopay did not answer within the request_timeout of %s", r.timeout)
	case connected:
		f.text = "the connection to Autopay broke before the whole answer came"
	default:
		f.text = "Autopay can't be reached: " + dialProblem(err)
	}
	return f
}

// dialProblem names the cause of a connection that never stood.
func dialProblem(err error) string {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		errno     syscall.Errno
	)
	switch {
	case errors.As(err, &dns):
		return "its host name does not resolve"
	case errors.As(err, &authority):
		return "its certificate is signed by an unknown authority (see ca_cert)"
	case errors.As(err, &hostname):
		return "its certificate is for another host"
	case errors.As(err, &invalid):
		return "its certificate is not valid"
	case errors.As(err, &record):
		return "it does not speak TLS"
	case errors.As(err, &errno):
		return errno.Error()
	default:
		return "no connection could be made"
	}
}
