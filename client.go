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
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
)

// # The exchange with Autopay
//
// One request, one answer, no connection kept: exchanges are hours apart. What comes
// back may come from Autopay, or from a proxy, gateway or firewall on the way, and
// three questions are answered about it.
//
//   - Is there a token in it? A 2xx may have cost one, and another request may cost
//     another. So whatever can be used safely is used: the body decides, not the media
//     type, and fields that are only shown never stand in the way.
//   - May it have cost a token, if there is none in it? Only a 3xx, a 4xx, a 503 and a
//     connection that never stood certainly did not (exchangeError.noToken).
//   - Who has to act, and when may it be tried again? That is the kind of an
//     exchangeError. Its text says who spoke: Autopay, the proxy, or a page for people
//     that is neither's.
//
// No text that this file returns quotes net/http, which quotes bytes of answers, or
// anything of the answer but Autopay's own error and error_description, cleaned.

// version is what -version prints and what Vault shows as the running version. It is
// a variable so that a test can build the next one (-ldflags -X).
var version = "v0.1.0"

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

// exchange trades a client ID and secret for a token in one request, which it never
// repeats. It ends with ctx or after r.timeout, whichever comes first.
func (c *client) exchange(ctx context.Context, r tokenRequest) (tokenAnswer, *exchangeError) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	var connected, certificateWanted atomic.Bool // whether a connection stands, TLS included; see newTransport
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := newRequest(ctx, r)
	if err != nil {
		return tokenAnswer{}, &exchangeError{text: err.Error(), noToken: true, kind: unreachable}
	}
	transport := c.transport
	if transport == nil {
		fresh := newTransport(r.caCert, &certificateWanted)
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
	body, _ := json.Marshal(map[string]string{
		"client_id":     r.clientID,
		"client_secret": r.clientSecret,
		"audience":      r.audience,
		"grant_type":    "client_credentials",
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.tokenURL, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("token_url can't be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	// Without it any coding is acceptable (RFC 9110, section 12.5.3), and net/http would
	// ask for gzip and decompress it.
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "vault-plugin-secrets-autopay/"+version)
	return req, nil
}

// checkTokenURL keeps the secret off plain networks: a token URL is https, or http to a
// loopback host only. The error names the rule and quotes nothing.
func checkTokenURL(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "":
		return errors.New("token_url must be an absolute https URL")
	case u.User != nil:
		return errors.New("token_url must not contain a user name or password")
	case u.Fragment != "" || strings.Contains(raw, "#"):
		return errors.New("token_url must not contain a fragment")
	case u.Scheme == "https":
	case u.Scheme == "http" && loopback(u.Hostname()):
	default:
		return errors.New("token_url must be an https URL; plain http is only allowed for loopback hosts")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return errors.New("token_url must have a port from 1 to 65535, or none")
		}
	}
	return nil
}

// loopback reports whether a host is this machine. It resolves no names: whoever
// controls the name server could let one lead elsewhere.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newTransport returns a transport for one exchange. It sets certificateWanted when
// the other side asks for a client certificate; there is none. A caCert that holds no
// certificate, which can only be damage in storage, trusts nobody.
func newTransport(caCert string, certificateWanted *atomic.Bool) *http.Transport {
	tlsConfig := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificateWanted.Store(true)
			return &tls.Certificate{}, nil
		},
	}
	if caCert != "" {
		tlsConfig.RootCAs = x509.NewCertPool()
		tlsConfig.RootCAs.AppendCertsFromPEM([]byte(caCert))
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
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// brokenExchange describes an exchange that ended without a whole answer. It
// passes on no text of net/http, which quotes bytes of the answer.
func (c *client) brokenExchange(
	ctx context.Context, r tokenRequest, err error, connected, certificateWanted bool,
) *exchangeError {
	var proxy *exchangeError // what a proxy answered to CONNECT
	x := &exchangeError{noToken: !connected}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && !connected:
		x.text = fmt.Sprintf(cantReach+"it, or a proxy, did not answer within the request_timeout of %s", r.timeout)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		x.text = fmt.Sprintf("Autopay did not answer within the request_timeout of %s", r.timeout)
	case errors.As(err, &proxy):
		return proxy
	case certificateWanted && alerted(err, handshakeFailure, badCertificate, certificateRequired):
		// In TLS 1.3 a connection stands before the other side has checked.
		x.text, x.kind, x.noToken = cantReach+"it requires a client certificate, which is not supported", unreachable, true
	case connected:
		x.text = "the connection to Autopay broke before the whole answer arrived"
	default:
		var problem string
		problem, x.kind = dialProblem(err, c.now())
		x.text = cantReach + problem
	}
	return x
}

// TLS alerts (RFC 8446, section 6).
const (
	handshakeFailure    = 40
	badCertificate      = 42
	protocolVersion     = 70
	certificateRequired = 116
)

// alerted reports whether the other side ended a connection with one of the alerts.
// crypto/tls wraps them in a type of its own with the same texts (crypto/tls/conn.go).
func alerted(err error, alerts ...uint8) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" &&
		slices.ContainsFunc(alerts, func(a uint8) bool { return tls.AlertError(a).Error() == op.Err.Error() })
}

// dialProblem names the reason why no connection could be made, and whether time
// may cure it.
func dialProblem(err error, now time.Time) (problem string, kind exchangeKind) {
	var (
		op       *net.OpError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		errno    syscall.Errno
	)
	if errors.As(err, &op) && op.Op == "proxyconnect" {
		problem, kind = dialProblem(op.Err, now)
		return "the proxy can't be reached: " + problem, kind
	}
	switch {
	case errors.As(err, new(*net.DNSError)):
		return "its host name does not resolve", outage
	case errors.As(err, &errno):
		return errno.Error(), outage
	case errors.As(err, new(x509.UnknownAuthorityError)):
		problem = "its certificate is signed by an unknown authority (check ca_cert)"
	case errors.As(err, &hostname) && len(hostname.Certificate.DNSNames)+len(hostname.Certificate.IPAddresses) == 0:
		problem = "its certificate has no subject alternative name"
	case errors.As(err, &hostname):
		problem = "its certificate is for another host"
	case errors.As(err, &invalid):
		problem = certificateProblem(invalid, now)
	case errors.As(err, new(tls.RecordHeaderError)):
		problem = "it does not speak TLS"
	// The other side's alert, or the text of crypto/tls/handshake_client.go.
	case alerted(err, protocolVersion), strings.Contains(err.Error(), "unsupported protocol version"):
		problem = "it does not support TLS 1.2 or newer"
	default:
		return "no connection could be made", outage
	}
	return problem, unreachable
}

// certificateProblem says what makes a certificate invalid at now.
func certificateProblem(invalid x509.CertificateInvalidError, now time.Time) string {
	switch {
	case invalid.Reason == x509.IncompatibleUsage:
		return "its certificate is not a server certificate"
	case invalid.Reason != x509.Expired:
		return "its certificate is not valid"
	case now.Before(invalid.Cert.NotBefore):
		return "its certificate is not valid yet (check the clock of Vault's server)"
	}
	return "its certificate has expired (check the clock of Vault's server)"
}

const (
	maxAnswerSize = 1 << 20          // bytes of an answer's body
	maxTokenSize  = 64 << 10         // bytes; the token goes into a header
	maxLifetime   = 3650 * 24 * 3600 // seconds: ten years
	maxErrorText  = 200              // characters of Autopay's own words
	maxRetryAfter = time.Hour        // longest wait that Autopay may ask for
	maxJitter     = 15 * time.Second
)

// tokenAnswer is a token as Autopay issued it.
type tokenAnswer struct {
	accessToken string
	scope       string
	lifetime    time.Duration // whole seconds, counted from before the request was sent
}

// exchangeError is an exchange that brought no token. Its text is safe to show:
// it never holds the secret, a token or a raw answer.
type exchangeError struct {
	text       string
	kind       exchangeKind
	noToken    bool          // Autopay certainly issued no token
	retryAfter time.Duration // how long Autopay asks us to wait, at most maxRetryAfter; 0: it does not say
}

// Error implements error.
func (e *exchangeError) Error() string { return e.text }

// An exchangeKind says what kind of fault an exchange ended with, and so how long
// to wait before the next one.
type exchangeKind int

const (
	outage      exchangeKind = iota // Autopay can't be reached or fails: it may work later
	busy                            // Autopay answered 429
	refusal                         // Autopay refused the credential
	unusable                        // a 2xx without a usable token, each of which may have cost one
	noStorage                       // the ledger could not be stored, so nothing was sent
	unreachable                     // a redirect, a proxy or a certificate is in the way
)

// A failureKind says why an attempt to obtain a token failed: it is the HTTP status that
// waiting readers get. Storage keeps it too.
type failureKind int

const (
	unavailable   failureKind = http.StatusServiceUnavailable  // Autopay can't be reached, or its answer holds no token
	refused       failureKind = http.StatusBadGateway          // Autopay refused the credential
	storageFailed failureKind = http.StatusInternalServerError // the ledger could not be stored, so no request was sent
)

// backoff is how long to wait after a failed attempt: first, and twice as long
// after each further failure in a row, up to most; and what those who wait for the
// token get meanwhile.
type backoff struct {
	first, most time.Duration
	status      failureKind
}

var backoffs = [...]backoff{
	outage:      {time.Second, time.Minute, unavailable},
	busy:        {time.Minute, 5 * time.Minute, unavailable},
	refusal:     {5 * time.Minute, 15 * time.Minute, refused},
	unusable:    {5 * time.Minute, time.Hour, unavailable},
	unreachable: {time.Second, time.Minute, unavailable},
	noStorage:   {time.Second, time.Minute, storageFailed},
}

// after returns the wait that follows the previous one (0: there was none). One that
// is longer than most was not a backoff of this kind, and does not count. The wait is
// up to a quarter and maxJitter shorter, so that many credentials do not come back at
// once.
func (b backoff) after(previous time.Duration) time.Duration {
	wait := b.first
	for previous <= b.most && wait < 2*previous && wait < b.most {
		wait *= 2
	}
	wait = min(wait, b.most)
	return max(wait-rand.N(min(wait/4, maxJitter)), b.first) //nolint:gosec // jitter needs no secrecy
}

// oauthError is an error as RFC 6749, section 5.2, has it.
type oauthError struct {
	Code        json.RawMessage `json:"error"`
	Description json.RawMessage `json:"error_description"`
}

// words returns the error's texts, each behind a colon.
func (e oauthError) words(secret string) (words string) {
	for _, said := range []json.RawMessage{e.Code, e.Description} {
		if text := jsonText(said); text != "" {
			words += ": " + cleanText(text, secret)
		}
	}
	return words
}

// unmarshal reads the JSON of an answer, which may begin with a byte order mark.
func unmarshal(body []byte, v any) error {
	return json.Unmarshal(bytes.TrimPrefix(body, []byte("\ufeff")), v)
}

// jsonText is the text in a JSON string; "" for every other JSON.
func jsonText(raw json.RawMessage) (text string) {
	_ = json.Unmarshal(raw, &text)
	return text
}

// missing reports whether a field of a JSON object is not there, or empty.
func missing(raw json.RawMessage) bool {
	return len(raw) == 0 || string(raw) == "null" || string(raw) == `""`
}

// parseToken reads the token in a 2xx. The answer may have cost a token, so what
// can be used safely is used: the body counts, and not its media type. The error
// names the field and the rule, and quotes nothing but Autopay's own words.
func parseToken(resp *http.Response, body []byte, secret string) (tokenAnswer, *exchangeError) {
	var said struct {
		AccessToken json.RawMessage `json:"access_token"`
		TokenType   json.RawMessage `json:"token_type"`
		Scope       json.RawMessage `json:"scope"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
		oauthError
	}
	err := unmarshal(body, &said)
	token, seconds := jsonText(said.AccessToken), lifetimeSeconds(said.ExpiresIn)
	problem := ""
	switch {
	case len(body) > maxAnswerSize:
		problem = "it is larger than 1 MiB"
	case err != nil && resp.Header.Get("Content-Encoding") != "":
		problem = "it has a Content-Encoding, which was not requested"
	case err != nil && isHTML(resp, body):
		text := fmt.Sprintf("Autopay answered %d: %s", resp.StatusCode, htmlProblem)
		return tokenAnswer{}, &exchangeError{kind: unusable, text: text}
	case err != nil:
		problem = "it is not a JSON object"
	case missing(said.AccessToken) && !missing(said.Code):
		return tokenAnswer{}, &exchangeError{kind: refusal, text: refusalText(resp.StatusCode) + said.words(secret)}
	case token == "" || len(token) > maxTokenSize || !visibleASCII(token, '!'):
		problem = "access_token must be 1 to 65536 printable ASCII characters without spaces"
	case !missing(said.TokenType) && !strings.EqualFold(jsonText(said.TokenType), "Bearer"):
		problem = "token_type must be Bearer"
	case seconds < 1 || seconds != math.Trunc(seconds):
		problem = "expires_in must be a whole number of seconds, at least 1"
	}
	if problem != "" {
		return tokenAnswer{}, &exchangeError{kind: unusable, text: "Autopay sent a malformed answer: " + problem}
	}
	return tokenAnswer{token, scopeText(said.Scope), time.Duration(min(seconds, maxLifetime)) * time.Second}, nil
}

// lifetimeSeconds reads expires_in: a number, or digits in quotes, as some
// endpoints send it. It returns 0 for everything else.
func lifetimeSeconds(raw json.RawMessage) float64 {
	digits := jsonText(raw)
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		digits = string(raw)
	}
	seconds, _ := strconv.ParseFloat(digits, 64) // infinite if it is out of range
	return seconds
}

// scopeText joins a scope that is a list or a text. It is only shown, so words that
// can't be are left out.
func scopeText(raw json.RawMessage) string {
	var list []string
	_ = json.Unmarshal(raw, &list) // items that are no text stay empty
	words := strings.Fields(strings.Join(append(list, jsonText(raw)), " "))
	words = slices.DeleteFunc(words, func(word string) bool { return !visibleASCII(word, '!') })
	if scope := strings.Join(words, " "); len(scope) <= maxTokenSize {
		return scope
	}
	return ""
}

const htmlProblem = "the answer is text/html, not JSON; a proxy or firewall may have sent it"

// isHTML reports whether an answer is a page for people.
func isHTML(resp *http.Response, body []byte) bool {
	begin := strings.ToLower(string(bytes.TrimSpace(body[:min(len(body), 512)])))
	return strings.Contains(strings.ToLower(resp.Header.Get("Content-Type")), "html") ||
		strings.HasPrefix(begin, "<!doctype html") || strings.HasPrefix(begin, "<html")
}

// refusalText says that the client ID or secret is wrong, or may not have a token.
func refusalText(code int) string { return fmt.Sprintf("Autopay refused the credential (%d)", code) }

// statusText is a status code with its name, if it has one.
func statusText(code int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))
}

// errorAnswer describes an answer other than a 2xx, with Autopay's own words if it
// sent any. Only a 3xx, a 4xx and a 503 certainly brought no token: another 5xx may
// be a gateway's, which does not say what Autopay did behind it.
func errorAnswer(resp *http.Response, body []byte, secret string, now time.Time) *exchangeError {
	code := resp.StatusCode
	e := &exchangeError{
		text:       "Autopay answered " + statusText(code),
		noToken:    code/100 == 3 || code/100 == 4 || code == http.StatusServiceUnavailable,
		retryAfter: parseRetryAfter(resp.Header, now),
	}
	var said oauthError
	html := unmarshal(body, &said) != nil && isHTML(resp, body)
	switch {
	case code/100 == 3:
		e.kind, html = unreachable, false
		e.text = fmt.Sprintf("Autopay answered %d, a redirect, which is not followed (check token_url)", code)
	case code == http.StatusProxyAuthRequired:
		return proxyAnswer(code)
	case code == http.StatusTooManyRequests:
		e.kind = busy
	case code/100 == 4 && code != http.StatusRequestTimeout:
		e.kind = refusal
		switch code {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			if !html {
				e.text = refusalText(code)
			}
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusGone,
			http.StatusUnsupportedMediaType, http.StatusMisdirectedRequest:
			e.text += " (check token_url)"
		}
	}
	e.text += said.words(secret)
	if html {
		e.text += ": " + htmlProblem
	}
	return e
}

const cantReach = "Autopay can't be reached: "

// proxyAnswer describes what a proxy answered to a request that it should have
// passed on.
func proxyAnswer(code int) *exchangeError {
	x := &exchangeError{text: cantReach + "the proxy answered " + statusText(code), noToken: true, kind: unreachable}
	if code/100 == 5 {
		x.kind = outage
	}
	return x
}

// cleanText makes foreign text fit to show: one short line of printable
// characters, without the secret that the text might echo, plain or JSON-quoted.
func cleanText(text, secret string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	quoted, _ := json.Marshal(secret)
	// As encoders write it that do not escape &, < and >.
	plainly := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(secret)
	for _, s := range []string{secret, plainly, string(quoted[1 : len(quoted)-1])} {
		text = strings.TrimSpace(strings.ReplaceAll(text, s, "[redacted]"))
	}
	if runes := []rune(text); len(runes) > maxErrorText {
		text = string(runes[:maxErrorText-1]) + "…"
	}
	return text
}

// parseRetryAfter reads a Retry-After header, in seconds or as an HTTP date, which
// counts from the answer's own Date (RFC 9110, section 10.2.3). It returns 0 if
// there is none or it makes no sense.
func parseRetryAfter(header http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(header.Get("Retry-After"))
	seconds, _ := strconv.ParseFloat(value, 64) // infinite if it is out of range
	if at, e := http.ParseTime(value); e == nil {
		if date, e := http.ParseTime(header.Get("Date")); e == nil {
			now = date
		}
		seconds = at.Sub(now).Seconds()
	}
	if !(seconds > 0) { // or it is not a number
		return 0
	}
	return time.Duration(math.Ceil(min(seconds, maxRetryAfter.Seconds()))) * time.Second
}

// visibleASCII reports whether s holds only ASCII characters from first to ~. From ! on
// it is what a header can carry, for tokens; from the space on it is what earlier
// versions accept in storage, for scopes.
func visibleASCII(s string, first byte) bool {
	for i := range len(s) {
		if s[i] < first || s[i] > '~' {
			return false
		}
	}
	return true
}
