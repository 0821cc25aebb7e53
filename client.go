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
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const maxHeaderBytes = 64 << 10 // of an answer

// tokenRequest is what one exchange needs to know.
type tokenRequest struct {
	tokenURL     string
	clientID     string
	clientSecret string
	audience     string
	caCert       string        // PEM; "" trusts the system's roots
	timeout      time.Duration // for the whole exchange
}

// client talks to the token endpoint. It knows nothing of Vault. It is safe for
// concurrent use.
type client struct {
	now       func() time.Time
	transport http.RoundTripper // nil: a new one for each exchange
}

// exchange trades a client ID and secret for a token in one request, which it
// never repeats. It keeps no connection, because exchanges are hours apart.
func (c *client) exchange(ctx context.Context, r tokenRequest) (tokenAnswer, *exchangeError) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var connected atomic.Bool // set once a connection stands, TLS included
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})

	req, err := newRequest(ctx, r)
	if err != nil {
		return tokenAnswer{}, unsent(err.Error())
	}
	transport := c.transport
	if transport == nil {
		fresh, err := newTransport(r.caCert)
		if err != nil {
			return tokenAnswer{}, unsent("ca_cert can't be used")
		}
		defer fresh.CloseIdleConnections()
		transport = fresh
	}
	// Not an http.Client: it would follow a redirect, which would carry the secret
	// elsewhere, and it would hide an answer whose redirect can't be parsed.
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
		return tokenAnswer{}, errorAnswer(resp, answer, r.clientSecret, c.now())
	}
	token, problem := parseToken(resp.Header.Get("Content-Type"), answer)
	if problem != "" {
		return tokenAnswer{}, &exchangeError{text: "Autopay sent a malformed answer: " + problem}
	}
	return token, nil
}

// newRequest returns the request of an exchange. Its error quotes nothing.
func newRequest(ctx context.Context, r tokenRequest) (*http.Request, error) {
	if err := checkTokenURL(r.tokenURL); err != nil { // a stored entry may be older than the rule
		return nil, err
	}
	body, err := json.Marshal(map[string]string{
		"client_id":     r.clientID,
		"client_secret": r.clientSecret,
		"audience":      r.audience,
		"grant_type":    "client_credentials",
	})
	if err != nil {
		return nil, errors.New("the token request can't be encoded")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.tokenURL, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("token_url can't be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "vault-plugin-secrets-autopay/"+version)
	return req, nil
}

// unsent is the error of a request that was never sent.
func unsent(text string) *exchangeError {
	return &exchangeError{text: text, noToken: true}
}

// checkTokenURL keeps the secret off plain networks: a token URL is https, or
// http to a loopback host only. The error names the rule and quotes nothing.
func checkTokenURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return errors.New("token_url must be an absolute https URL")
	case u.User != nil:
		return errors.New("token_url must not hold a user name or password")
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return errors.New("token_url must not hold a fragment")
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return errors.New("token_url must be an https URL; plain http is allowed to a loopback host only")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.New("token_url must have a port from 1 to 65535, or none")
		}
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newTransport returns a transport for one exchange.
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
func brokenExchange(ctx context.Context, r tokenRequest, err error, connected bool) *exchangeError {
	e := &exchangeError{noToken: !connected}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		e.text = fmt.Sprintf("Autopay did not answer within the request_timeout of %s", r.timeout)
	case connected:
		e.text = "the connection to Autopay broke before the whole answer arrived"
	default:
		e.text = "Autopay can't be reached: " + dialProblem(err)
	}
	return e
}

// dialProblem names the reason why no connection could be made.
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
		return "its certificate is signed by an unknown authority (check ca_cert)"
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
