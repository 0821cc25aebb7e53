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
	var connected, certificateWanted atomic.Bool // a connection stands, TLS included; the other side wants to know us by one
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := newRequest(ctx, r)
	if err != nil {
		return tokenAnswer{}, unsent(err.Error())
	}
	transport := c.transport
	if transport == nil {
		fresh, err := newTransport(r.caCert, &certificateWanted)
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
		return tokenAnswer{}, c.brokenExchange(ctx, r, err, connected.Load(), certificateWanted.Load())
	}
	defer resp.Body.Close() //nolint:errcheck // only read from
	var answer []byte
	if resp.StatusCode != http.StatusSwitchingProtocols { // its body is the bare connection, which no deadline ends
		answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswerSize+1))
	}
	if resp.StatusCode/100 != 2 {
		return tokenAnswer{}, errorAnswer(resp, answer, r.clientSecret, c.now())
	}
	token, x := parseToken(resp, answer, r.clientSecret)
	if x != nil && err != nil {
		x = c.brokenExchange(ctx, r, err, true, false)
		x.kind = unusable
	}
	return token, x
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
	req.Header.Set("Accept-Encoding", "identity") // without it any coding is acceptable (RFC 9110, section 12.5.3)
	req.Header.Set("User-Agent", "vault-plugin-secrets-autopay/"+version)
	return req, nil
}

// unsent is the error of a request that was never sent.
func unsent(text string) *exchangeError {
	return &exchangeError{text: text, noToken: true, kind: unreachable}
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

// newTransport returns a transport for one exchange. It sets certificateWanted when
// the other side asks for a client certificate; there is none.
func newTransport(caCert string, certificateWanted *atomic.Bool) (*http.Transport, error) {
	tlsConfig := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificateWanted.Store(true)
			return &tls.Certificate{}, nil
		},
	}
	if caCert != "" {
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM([]byte(caCert)) {
			return nil, errors.New("no certificate in the PEM data")
		}
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, // never for a loopback host
		OnProxyConnectResponse: func(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
			if resp.StatusCode != http.StatusOK {
				return proxyAnswer(resp.StatusCode)
			}
			return nil
		},
		TLSClientConfig:        tlsConfig,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}, nil
}

// brokenExchange describes an exchange that ended without a whole answer. It
// passes on no text of net/http, which quotes bytes of the answer.
func (c *client) brokenExchange(ctx context.Context, r tokenRequest, err error, connected, certificateWanted bool) *exchangeError {
	var (
		proxy *exchangeError // what a proxy answered to CONNECT
		alert *net.OpError
	)
	x := &exchangeError{noToken: !connected}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		x.text = fmt.Sprintf("Autopay did not answer within the request_timeout of %s", r.timeout)
	case errors.As(err, &proxy):
		return proxy
	case certificateWanted && errors.As(err, &alert) && alert.Op == remoteAlert:
		// In TLS 1.3 a connection stands before the other side has checked.
		x.text, x.kind, x.noToken = cantReach+"it asks for a client certificate, which is not supported", unreachable, true
	case connected:
		x.text = "the connection to Autopay broke before the whole answer arrived"
	default:
		var problem string
		problem, x.kind = dialProblem(err, c.now())
		x.text = cantReach + problem
	}
	return x
}

// remoteAlert is the net.OpError.Op of a TLS alert (crypto/tls/conn.go).
const remoteAlert = "remote error"

// dialProblem names the reason why no connection could be made, and whether time
// may cure it.
func dialProblem(err error, now time.Time) (problem string, kind exchangeKind) {
	var (
		op        *net.OpError
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		errno     syscall.Errno
	)
	if errors.As(err, &op) && op.Op == "proxyconnect" {
		problem, kind = dialProblem(op.Err, now)
		return "the proxy can't be reached: " + problem, kind
	}
	switch {
	case errors.As(err, &dns):
		return "its host name does not resolve", outage
	case errors.As(err, &errno):
		return errno.Error(), outage
	case errors.As(err, &authority):
		problem = "its certificate is signed by an unknown authority (check ca_cert)"
	case errors.As(err, &hostname) && len(hostname.Certificate.DNSNames)+len(hostname.Certificate.IPAddresses) == 0:
		problem = "its certificate has no subject alternative name"
	case errors.As(err, &hostname):
		problem = "its certificate is for another host"
	case errors.As(err, &invalid):
		problem = certificateProblem(invalid, now)
	case errors.As(err, &record):
		problem = "it does not speak TLS"
	case op != nil && op.Op == remoteAlert && op.Err.Error() == tls.AlertError(alertProtocolVersion).Error(),
		strings.Contains(err.Error(), "unsupported protocol version"): // crypto/tls/handshake_client.go, pickTLSVersion
		problem = "it does not support TLS 1.2 or newer"
	default:
		return "no connection could be made", outage
	}
	return problem, unreachable
}

const alertProtocolVersion = 70 // RFC 8446, section 6

// certificateProblem says what makes a certificate invalid at now.
func certificateProblem(invalid x509.CertificateInvalidError, now time.Time) string {
	switch {
	case invalid.Reason == x509.IncompatibleUsage:
		return "its certificate is not for servers"
	case invalid.Reason != x509.Expired:
		return "its certificate is not valid"
	case now.Before(invalid.Cert.NotBefore):
		return "its certificate is not valid yet (check the clock of Vault's server)"
	}
	return "its certificate has expired (check the clock of Vault's server)"
}
