package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// try makes one exchange. What r leaves out is as usual.
func (c *client) try(t *testing.T, r tokenRequest) (tokenAnswer, *exchangeError) {
	t.Helper()
	c.now = time.Now
	r.clientID, r.clientSecret, r.audience = testID, testSecret, defaultAudience
	r.tokenURL, r.timeout = cmp.Or(r.tokenURL, defaultTokenURL), cmp.Or(r.timeout, time.Minute)
	return c.exchange(t.Context(), r)
}

// newSim returns a simulator and the URL of its token endpoint on a real listener, with
// TLS if conf is not nil.
func newSim(t *testing.T, conf *tls.Config) (*autopaysim.Server, string) {
	t.Helper()
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
	t.Cleanup(sim.Close)
	srv := httptest.NewUnstartedServer(sim)
	t.Cleanup(srv.Close)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are wanted
	if srv.TLS = conf; conf != nil {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	return sim, srv.URL + autopaysim.TokenPath
}

// nobody is the address of a server that has been closed.
func nobody() string {
	closed := httptest.NewServer(nil)
	closed.Close()
	return closed.URL
}

// TestExchangeOverRealConnections covers what a RoundTripper can't: dialing and TLS.
func TestExchangeOverRealConnections(t *testing.T) {
	t.Parallel()
	sim, good := newSim(t, nil)
	for name, test := range map[string]struct {
		url     string
		fault   autopaysim.Fault
		says    string
		noToken bool
	}{
		"good":                  {good, autopaysim.Fault{}, "", false},
		"nobody listens":        {nobody(), autopaysim.Fault{}, "Autopay can't be reached: connection refused", true},
		"no such host":          {"https://autopay.invalid/", autopaysim.Fault{}, "Autopay can't be reached: its host name does not resolve", true},
		"http where TLS is due": {strings.Replace(good, "http:", "https:", 1), autopaysim.Fault{}, "Autopay can't be reached: it does not speak TLS", true},
		"hang":                  {good, fault("hang"), "Autopay did not answer within the request_timeout of 1s", false},
		"cut":                   {good, fault("cut"), "the connection to Autopay broke", false},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // they share the simulator's fault
			sim.SetFault(test.fault)
			before := sim.Requests("")
			r := tokenRequest{tokenURL: test.url}
			if test.fault.Kind == autopaysim.FaultHang {
				r.timeout = time.Second
			}
			_, f := new(client).try(t, r)
			if (f == nil) != (test.says == "") || f != nil && (!strings.Contains(f.text, test.says) || f.noToken != test.noToken) {
				t.Errorf("got %+v, want %q, certainly no token: %v", f, test.says, test.noToken)
			}
			if n := sim.Requests("") - before; n > 1 {
				t.Errorf("%d requests for one exchange", n)
			}
		})
	}
}

func TestExchangeSendsWhatAutopayDocuments(t *testing.T) {
	t.Parallel()
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		// Without Accept-Encoding, any coding would be acceptable.
		got = fmt.Sprintf("%s %s %s %s %s close=%v", r.Method, r.URL.Path, r.Header.Get("Content-Type"), r.Header.Get("Accept-Encoding"), body, r.Close)
		_, _ = w.Write([]byte(goodAnswer))
	}))
	t.Cleanup(srv.Close)
	answer, f := new(client).try(t, tokenRequest{tokenURL: srv.URL + "/oauth/token"})
	want := `POST /oauth/token application/json identity {"audience":"https://api.autopay.io","client_id":"test-client",` +
		`"client_secret":"canary-secret-4711","grant_type":"client_credentials"} close=true`
	if f != nil || got != want {
		t.Errorf("sent %s, want %s (%v)", got, want, f)
	}
	if answer != (tokenAnswer{"canary-token", "customer_club", 24 * time.Hour}) {
		t.Errorf("understood %+v", answer)
	}
}

// hostileHost hands every connection to a function, on an address that it returns. over
// accepts no more of them and reports whether the other side has closed them all.
func hostileHost(t *testing.T, serve func(net.Conn)) (address string, over func() bool) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	ended := make(chan struct{})
	var conns sync.WaitGroup
	go func() {
		defer close(ended)
		for {
			conn, err := ln.Accept()
			if err != nil {
				conns.Wait()
				return
			}
			conns.Go(func() {
				defer conn.Close()
				serve(conn)
				_, _ = io.Copy(io.Discard, conn) // until the other side closes
			})
		}
	}()
	return ln.Addr().String(), func() bool {
		ln.Close()
		select {
		case <-ended:
			return true
		case <-time.After(time.Minute):
			return false
		}
	}
}

// reply reads a request, writes first once, and then writes rest again and again.
func reply(first, rest string, pause time.Duration) func(net.Conn) {
	return func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 64<<10))
		_, err := io.WriteString(conn, first)
		for err == nil && rest != "" {
			_, err = io.WriteString(conn, rest)
			time.Sleep(pause)
		}
	}
}

// TestExchangeWithHostileHosts: a host that answers in bad faith causes one failed
// attempt and no more. The exchange ends by its deadline, the connection is closed,
// and the error quotes nothing of the answer.
func TestExchangeWithHostileHosts(t *testing.T) {
	t.Parallel()
	const (
		ok   = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		slow = 50 * time.Millisecond
	)
	var bomb bytes.Buffer // inflated, it is a good answer
	w := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(w, strings.Repeat(" ", maxAnswerSize/2)+goodAnswer)
	w.Close()

	for name, test := range map[string]struct {
		say  func(net.Conn)
		says string
	}{
		"not HTTP":                       {reply("this is a canary-token\r\n\r\n", "", 0), "the connection to Autopay broke"},
		"another protocol, then silence": {reply("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: canary\r\n\r\n", "", 0), "Autopay answered 101"},
		"another protocol, then a drip":  {reply("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: canary\r\n\r\n", "x", slow), "Autopay answered 101"},
		"early hints without end":        {reply("", "HTTP/1.1 103 Early Hints\r\nX: canary\r\n\r\n", 0), "the connection to Autopay broke"},
		"headers without end":            {reply("HTTP/1.1 200 OK\r\n", "X-Canary: canary\r\n", 0), "the connection to Autopay broke"},
		"headers that drip":              {reply("HTTP/1.1 200 OK\r\nX: ", "x", slow), "did not answer within the request_timeout"},
		"body without end":               {reply(ok+"\r\n", strings.Repeat("canary", 1000), 0), "larger than 1 MiB"},
		"body that drips":                {reply(ok+"\r\n", " ", slow), "did not answer within the request_timeout"},
		"body in chunks without end":     {reply(ok+"Transfer-Encoding: chunked\r\n\r\n", "6\r\ncanary\r\n", 0), "larger than 1 MiB"},
		"chunks with long extensions":    {reply(ok+"Transfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 4000)+"\r\n \r\n", 0), "the connection to Autopay broke"},
		"trailers without end":           {reply(ok+"Transfer-Encoding: chunked\r\n\r\n0\r\n", "X-Canary: canary\r\n", 0), "the connection to Autopay broke"},
		"a terabyte announced":           {reply(ok+"Content-Length: 1099511627776\r\n\r\n", "", 0), "did not answer within the request_timeout"},
		"an error's body without end":    {reply("HTTP/1.1 500 x\r\n\r\n", strings.Repeat("canary", 1000), 0), "Autopay answered 500 Internal Server Error"},
		"a refusal's body that drips":    {reply("HTTP/1.1 401 x\r\n\r\n", " ", slow), "Autopay refused the credential (401)"},
		"a gzip bomb":                    {reply(ok+"Content-Encoding: gzip\r\nContent-Length: "+fmt.Sprint(bomb.Len())+"\r\n\r\n"+bomb.String(), "", 0), "it has a Content-Encoding, which was not asked for"},
	} {
		runInBubble(t, name, func(t *testing.T) {
			transport := newTransport("", new(atomic.Bool))
			var open atomic.Int32
			transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
				ours, theirs := net.Pipe() // so that the deadline is the bubble's
				open.Add(1)
				go func() {
					defer open.Add(-1)
					defer theirs.Close()
					test.say(theirs)
					_, _ = io.Copy(io.Discard, theirs) // until the other side closes
				}()
				return ours, nil
			}
			_, f := (&client{transport: transport}).try(t, tokenRequest{tokenURL: "http://127.0.0.1", timeout: 5 * time.Second})
			if f == nil || !strings.Contains(f.text, test.says) || strings.Contains(f.text, "canary") {
				t.Errorf("got %v, want %q", f, test.says)
			}
			wantWithin(t, start2000, 5*time.Second)
			time.Sleep(time.Second) // a host that drips notices at its next drop
			synctest.Wait()
			if n := open.Load(); n > 0 {
				t.Errorf("%d connections are still open", n)
			}
		})
	}
}

// TestExchangeWithHostileHandshakes does the same for TLS, over real connections: the
// exchange must give up its transport, too.
func TestExchangeWithHostileHandshakes(t *testing.T) {
	t.Parallel()
	const late = "did not answer within the request_timeout"
	for name, test := range map[string]struct {
		say     func(net.Conn)
		says    string
		timeout time.Duration
	}{
		"no answer":                {func(net.Conn) {}, late, time.Second},
		"a drip":                   {reply("\x16\x03\x03\x40\x00", "\x00", 50*time.Millisecond), late, time.Second},
		"TLS 1.1 without an alert": {reply("\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02"+strings.Repeat("x", 32)+"\x00\xc0\x2f\x00", "", 0), "it does not support TLS 1.2 or newer", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, over := hostileHost(t, test.say)
			_, f := new(client).try(t, tokenRequest{tokenURL: "https://" + address, timeout: test.timeout})
			if f == nil || !strings.Contains(f.text, test.says) {
				t.Errorf("got %v, want %q", f, test.says)
			}
			if !over() {
				t.Error("the connection is still open")
			}
		})
	}
}

// TestRedirectsCarryNothing redirects the engine to a host that records requests.
func TestRedirectsCarryNothing(t *testing.T) {
	t.Parallel()
	sim, url := newSim(t, nil)
	thief, elsewhere := newSim(t, nil)
	for n, status := range []int{300, 301, 302, 303, 305, 307, 308} {
		sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultRedirect, Status: status, Location: elsewhere})
		_, f := new(client).try(t, tokenRequest{tokenURL: url})
		if f == nil || !f.noToken || !strings.Contains(f.text, "a redirect, which is not followed") || strings.Contains(f.text, elsewhere) {
			t.Errorf("%d: %v", status, f)
		}
		if got, sent := sim.Requests(""), thief.Requests(""); got != n+1 || sent != 0 {
			t.Errorf("%d: %d requests, want %d; %d elsewhere", status, got, n+1, sent)
		}
	}
}

// TestProxySeesNoSecret has a proxy in the environment. The proxy learns the host and
// nothing else, and it is not used for a loopback host. net/http reads the
// environment once per process, so the test runs itself as another process.
func TestProxySeesNoSecret(t *testing.T) {
	t.Parallel()
	if url := os.Getenv("TEST_TOKEN_URL"); url != "" {
		_, f := new(client).try(t, tokenRequest{tokenURL: url})
		t.Logf("fault %v", f)
		return
	}
	var mu sync.Mutex
	var heard bytes.Buffer
	proxy, _ := hostileHost(t, func(conn net.Conn) {
		defer conn.Close()
		hear := func() {
			buf := make([]byte, 64<<10)
			n, _ := conn.Read(buf)
			mu.Lock()
			defer mu.Unlock()
			heard.Write(buf[:n])
		}
		hear()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		hear() // the TLS that follows is not answered
	})
	sim, good := newSim(t, nil)
	run := func(url string) string {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxySeesNoSecret$", "-test.v")
		cmd.Env = append(os.Environ(), "TEST_TOKEN_URL="+url, "HTTPS_PROXY=http://"+proxy, "HTTP_PROXY=http://"+proxy, "NO_PROXY=", "no_proxy=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		mu.Lock()
		defer mu.Unlock()
		defer heard.Reset()
		return heard.String()
	}
	if got := run(good); got != "" || sim.Issued(testID) != 1 {
		t.Errorf("a loopback host: the proxy heard %q, %d tokens were issued", got, sim.Issued(testID))
	}
	got := run("https://autopay.invalid/oauth/token")
	if !strings.HasPrefix(got, "CONNECT autopay.invalid:443 HTTP/1.1\r\n") || !strings.Contains(got, "\r\n\r\n\x16\x03") {
		t.Errorf("the proxy heard %q, want CONNECT and the beginning of TLS", got)
	}
	for _, secret := range []string{testSecret, testID, "oauth"} {
		if strings.Contains(got, secret) {
			t.Errorf("the proxy heard %q", secret)
		}
	}
}

// TestTokenURLReach: the secret may be sent to any https host, because whoever
// changes the host must bring the secret, and in plain text only to this machine.
func TestTokenURLReach(t *testing.T) {
	t.Parallel()
	for want, urls := range map[string][]string{
		"": {
			"https://api-auth.autopay.io/oauth/token", "https://10.0.0.1/token", "https://169.254.169.254/token", // no certificate is issued for it
			"http://localhost:8080/token", "http://127.0.0.1/token", "http://127.8.9.10:1/token", "http://[::1]/token", "http://[::ffff:127.0.0.1]/token",
		},
		"plain http is only allowed for loopback hosts": {
			"http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/latest/meta-data", "http://[::ffff:169.254.169.254]/",
			"http://100.100.100.200/latest/meta-data", "http://metadata.google.internal/", "http://169.254.170.2/v2/credentials",
			"http://10.0.0.1/", "http://0.0.0.0/", "http://[::]/", "http://0/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
			"http://LOCALHOST/", "http://localhost./", "http://localhost.evil.example/", "http://127.0.0.1.evil.example/", "http://[::1%25eth0]/",
			"gopher://127.0.0.1/", "//api-auth.autopay.io/oauth/token",
		},
		"user name": {"http://127.0.0.1@evil.example/", "https://me:secret@autopay.example/"},
		"fragment":  {"http://evil.example#127.0.0.1/", "https://autopay.example/#x", "https://autopay.example/#"},
		"port":      {"https://autopay.example:0/", "https://autopay.example:65536/"},
		"an absolute https URL": {
			"https://:8443/x", "http://evil.example\\127.0.0.1/", "file:///etc/passwd", "unix:///run/docker.sock", "/oauth/token",
			"https:api-auth.autopay.io", "https://api-auth.autopay.io/\r\nHost: evil",
		},
	} {
		for _, url := range urls {
			if err := checkTokenURL(url); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", url, err, want)
			}
		}
	}
}

// TestProxyErrorsNameTheProxy: what a proxy does wrong is not blamed on Autopay, and
// certainly cost no token.
func TestProxyErrorsNameTheProxy(t *testing.T) {
	t.Parallel()
	says := func(answer string) string {
		address, _ := hostileHost(t, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(conn, answer)
			conn.Close()
		})
		return address
	}
	for name, test := range map[string]struct {
		proxy, says string
		kind        exchangeKind
	}{
		"407":              {says("HTTP/1.1 407 canary\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"), "the proxy answered 407 Proxy Authentication Required", unreachable},
		"403":              {says("HTTP/1.1 403 canary\r\nContent-Length: 6\r\n\r\ncanary"), "the proxy answered 403 Forbidden", unreachable},
		"502":              {says("HTTP/1.1 502 x\r\n\r\ncanary"), "the proxy answered 502 Bad Gateway", outage},
		"nobody listens":   {strings.TrimPrefix(nobody(), "http://"), "the proxy can't be reached: connection refused", outage},
		"does not resolve": {"proxy.invalid:3128", "the proxy can't be reached: its host name does not resolve", outage},
		"204":              {says("HTTP/1.1 204 canary\r\n\r\n"), "the proxy answered 204 No Content", unreachable},
		"hangs up":         {says(""), "no connection could be made", outage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			transport := newTransport("", new(atomic.Bool))
			transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: test.proxy})
			_, got := (&client{transport: transport}).try(t, tokenRequest{})
			if want := (exchangeError{"Autopay can't be reached: " + test.says, test.kind, true, 0}); got == nil || *got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestExchangeOverTLS: the secret is sent to no host that can't prove that it is the one which
// token_url names. What is wrong is told apart.
func TestExchangeOverTLS(t *testing.T) {
	t.Parallel()
	now := time.Now()
	_, otherCA, err := autopaysim.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	const clock, wants = " (check the clock of Vault's server)", "it asks for a client certificate, which is not supported"
	asIs, onlyClients := func(*x509.Certificate) {}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for name, test := range map[string]struct {
		change func(*x509.Certificate)
		server *tls.Config
		ca     string // "": the server's own
		says   string // "": a token is obtained
	}{
		"good":                 {asIs, &tls.Config{}, "", ""},
		"TLS 1.2":              {asIs, &tls.Config{MaxVersion: tls.VersionTLS12}, "", ""},
		"TLS 1.1":              {asIs, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "", "it does not support TLS 1.2 or newer"},
		"unknown authority":    {asIs, &tls.Config{}, string(otherCA), "its certificate is signed by an unknown authority (check ca_cert)"},
		"system roots instead": {asIs, &tls.Config{}, "system", "its certificate is signed by an unknown authority (check ca_cert)"},
		"expired":              {func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }, &tls.Config{}, "", "its certificate has expired" + clock},
		"not valid yet":        {func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, &tls.Config{}, "", "its certificate is not valid yet" + clock},
		"no name":              {func(c *x509.Certificate) { c.IPAddresses = nil }, &tls.Config{}, "", "its certificate has no subject alternative name"},
		// A name that now leads here: DNS rebinding.
		"another host":                 {func(c *x509.Certificate) { c.IPAddresses[0] = net.IP{10, 0, 0, 1} }, &tls.Config{}, "", "its certificate is for another host"},
		"a client's":                   {func(c *x509.Certificate) { c.ExtKeyUsage = onlyClients }, &tls.Config{}, "", "its certificate is not for servers"},
		"wants a certificate, TLS 1.2": {asIs, &tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}, "", wants},
		"wants a certificate, TLS 1.3": {asIs, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, "", wants},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			cert := &x509.Certificate{
				SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{{127, 0, 0, 1}},
				BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
			}
			test.change(cert)
			der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			test.server.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
			sim, url := newSim(t, test.server)
			ca := cmp.Or(test.ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
			if ca == "system" {
				ca = ""
			}
			_, got := new(client).try(t, tokenRequest{tokenURL: url, caCert: ca})
			want := exchangeError{"Autopay can't be reached: " + test.says, unreachable, true, 0}
			if (got == nil) != (test.says == "") || got != nil && *got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if test.says != "" && sim.Requests("") != 0 {
				t.Error("the secret was sent")
			}
		})
	}
}

const goodAnswer = `{"access_token":"canary-token","scope":"customer_club","expires_in":86400,"token_type":"Bearer"}`

// answer is a transport that always answers the same.
type answer struct {
	status int
	media  string
	body   string
}

func (a answer) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	rec.Header().Set("Content-Type", a.media)
	rec.WriteHeader(a.status)
	_, _ = rec.WriteString(a.body)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// answerRule is what becomes of an answer without a usable token.
type answerRule struct {
	first, last int // status
	code        int // what readers get
	counts      bool
	wait        time.Duration // the least before the next attempt
	kind        exchangeKind
}

// answerRules says what DESIGN.md's rules 5 and 8 mean for each status. It repeats
// no condition of the code, so that a test which uses it sees a change of one.
var answerRules = []answerRule{
	{0, 199, 503, true, time.Second, outage}, // 0: no answer
	{200, 299, 503, true, 5 * time.Minute, unusable},
	{300, 399, 503, false, time.Second, unreachable},
	{400, 406, 502, false, 5 * time.Minute, refusal},
	{407, 407, 503, false, time.Second, unreachable},
	{408, 408, 503, false, time.Second, outage},
	{409, 428, 502, false, 5 * time.Minute, refusal},
	{429, 429, 503, false, time.Minute, busy},
	{430, 499, 502, false, 5 * time.Minute, refusal},
	{500, 502, 503, true, time.Second, outage},
	{503, 503, 503, false, time.Second, outage},
	{504, 999, 503, true, time.Second, outage},
}

// ruleFor returns the rule for a status, whose answer may hold an OAuth error.
func ruleFor(status int, oauthError bool) answerRule {
	i := slices.IndexFunc(answerRules, func(r answerRule) bool { return r.first <= status && status <= r.last })
	rule := answerRules[i]
	if rule.kind == unusable && oauthError {
		rule.kind, rule.code = refusal, 502
	}
	return rule
}

func TestExchangeAnswers(t *testing.T) {
	t.Parallel()
	const jsonMedia = "application/json"
	long := strings.Repeat("x", maxTokenSize+1)
	denied := `{"error":"access_denied","error_description":"Unauthorized"}`
	html := `<!DOCTYPE html><html>canary-token</html>`
	ok := func(field, value string) answer {
		fields := map[string]string{"access_token": `"t"`, "expires_in": "60", "token_type": `"Bearer"`, "scope": `"s"`}
		fields[field] = value
		var parts []string
		for k, v := range fields {
			if v != "" {
				parts = append(parts, fmt.Sprintf("%q:%s", k, v))
			}
		}
		return answer{200, jsonMedia, "{" + strings.Join(parts, ",") + "}"}
	}
	good := func(media string) answer { return answer{200, media, goodAnswer} }
	for says, test := range map[string]struct {
		code    int // what readers get; 0: the token is used
		answers []answer
	}{
		"used": {0, []answer{
			good(jsonMedia), good("application/json; charset=utf-8"), good("text/html"), good(""), good("application/json, application/json"),
			{201, jsonMedia, goodAnswer},
			{200, jsonMedia, "\ufeff" + goodAnswer},
			ok("token_type", `"bearer"`), ok("token_type", ""), ok("token_type", "null"),
			ok("scope", ""), ok("scope", "null"), ok("scope", `"a\nb"`), ok("scope", `["a","b c",1]`), ok("scope", `"läs"`), ok("scope", `"`+long+`"`), ok("scope", "1e400"),
			ok("expires_in", "86400.0"), ok("expires_in", "315360000"), ok("expires_in", `"86400"`), ok("expires_in", "315360001"), ok("expires_in", "1e400"),
			ok("expires_in", `"99999999999999999999999"`),
			ok("error", `"access_denied"`), // and a token
		}},
		"not a JSON object": {503, []answer{
			{200, jsonMedia, ""}, {200, jsonMedia, "canary-token"}, {200, jsonMedia, "[]"}, {200, jsonMedia, goodAnswer + "x"}, {204, jsonMedia, ""},
		}},
		"larger than 1 MiB": {503, []answer{{200, jsonMedia, strings.Repeat(" ", maxAnswerSize) + goodAnswer}}},
		"access_token must be": {503, []answer{
			ok("access_token", ""), ok("access_token", "null"), ok("access_token", `""`), ok("access_token", `4711`), ok("access_token", `{"canary-token":1}`),
			ok("access_token", `"canary token"`), ok("access_token", `"a\r\nX-Evil: 1"`), ok("access_token", `"tökn"`), ok("access_token", `"`+long+`"`),
		}},
		"token_type must be Bearer": {503, []answer{ok("token_type", `"mac"`), ok("token_type", "1")}},
		"expires_in must be": {503, []answer{
			ok("expires_in", ""), ok("expires_in", "null"), ok("expires_in", "0"), ok("expires_in", "-60"), ok("expires_in", "-1e400"), ok("expires_in", "59.5"),
			ok("expires_in", `"soon"`), ok("expires_in", `"6e1"`), ok("expires_in", "[60]"),
		}},
		"Autopay answered 200: the answer is text/html, not JSON; a proxy or firewall may have sent it": {503, []answer{
			{200, "text/html; charset=utf-8", html}, {200, "", "\n" + html},
		}},
		"Autopay refused the credential (200): access_denied": {502, []answer{
			{200, jsonMedia, denied}, {200, jsonMedia, `{"error":"access_denied","access_token":null}`},
		}},
		"Autopay refused the credential (200)":                              {502, []answer{{200, jsonMedia, `{"error":{"canary":1}}`}}},
		"Autopay refused the credential (400): invalid_request":             {502, []answer{{400, jsonMedia, `{"error":"invalid_request"}`}}},
		"Autopay refused the credential (401): access_denied: Unauthorized": {502, []answer{{401, jsonMedia, denied}, {401, "text/html", denied}, {401, jsonMedia, "\ufeff" + denied}}},
		"Autopay refused the credential (401)":                              {502, []answer{{401, "text/plain", "canary-token"}, {401, jsonMedia, `{"error":["x"],"error_description":{"a":1}}`}}},
		"(403): no: bad secret [redacted]":                                  {502, []answer{{403, jsonMedia, `{"error":"no","error_description":"bad secret ` + testSecret + `"}`}}},
		"Autopay answered 403 Forbidden: the answer is text/html, not JSON": {502, []answer{{403, "text/html", html}}},
		"Autopay answered 302, a redirect, which is not followed":           {503, []answer{{302, "text/html", html}}},
		"Autopay answered 404 Not Found (check token_url): the answer is":   {502, []answer{{404, "text/html", html}}},
		"Autopay answered 405 Method Not Allowed (check token_url)":         {502, []answer{{405, jsonMedia, ""}}},
		"the proxy answered 407 Proxy Authentication Required":              {503, []answer{{407, jsonMedia, ""}}},
		"Autopay answered 408 Request Timeout":                              {503, []answer{{408, jsonMedia, ""}}},
		"Autopay answered 410 Gone (check token_url)":                       {502, []answer{{410, jsonMedia, ""}}},
		"Autopay answered 415 Unsupported Media Type (check token_url)":     {502, []answer{{415, jsonMedia, ""}}},
		"Autopay answered 421 Misdirected Request (check token_url)":        {502, []answer{{421, jsonMedia, ""}}},
		"Autopay answered 422 Unprocessable Entity: no":                     {502, []answer{{422, jsonMedia, `{"error":"no"}`}}},
		"Autopay answered 429 Too Many Requests":                            {503, []answer{{429, jsonMedia, ""}}},
		"Autopay answered 500 Internal Server Error: a [31m  b":             {503, []answer{{500, jsonMedia, `{"error":"a\u001b[31m\r\nb\u202e"}`}}},
		": " + strings.Repeat("ä", 199) + "…":                               {503, []answer{{500, jsonMedia, `{"error":"` + strings.Repeat("ä", 5000) + `"}`}}},
		"Autopay answered 503 Service Unavailable: the answer is text/html": {503, []answer{{503, "text/html", html}}},
		"Autopay answered 504 Gateway Timeout: the answer is text/html":     {503, []answer{{504, "text/html", html}}},
		"Autopay answered 599":                                              {503, []answer{{599, jsonMedia, ""}}},
	} {
		for i, answer := range test.answers {
			t.Run(fmt.Sprintf("%.40s, %d", says, i), func(t *testing.T) {
				t.Parallel()
				got, f := (&client{transport: answer}).try(t, tokenRequest{})
				if test.code == 0 {
					if f != nil || got.accessToken == "" || got.lifetime < time.Second {
						t.Errorf("got %+v, %v from %.100s", got, f, answer.body)
					}
					return
				}
				if f == nil || !strings.Contains(f.text, says) || strings.Contains(f.text, "canary") || len([]rune(f.text)) > 500 {
					t.Fatalf("got %v, want %q", f, says)
				}
				if want := ruleFor(answer.status, test.code == http.StatusBadGateway); *f != (exchangeError{f.text, want.kind, !want.counts, 0}) || want.code != test.code {
					t.Errorf("got %+v, want %+v", f, want)
				}
				// In the whole engine, a bad answer changes neither credential nor token.
				e := configured(t)
				e.client.transport = answer
				e.wantUnchanged(func() {
					resp, err := e.write("config", fields{"client_id": "another"})
					if err == nil && !resp.IsError() || strings.Contains(say(resp, err)+e.logs.String(), "canary-token") {
						t.Errorf("the config was taken, or the token is shown: %v %v", resp, err)
					}
				})
			})
		}
	}
}

// TestScopeIsOnlyShown: whatever the scope is, the token is used.
func TestScopeIsOnlyShown(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"": "", "null": "", `"a b"`: "a b", `["a","b c",1,null]`: "a b c", `"läs skriv"`: "skriv", `"a\nb"`: "a b", `{"a":1}`: "",
	} {
		if got := scopeText([]byte(raw)); got != want {
			t.Errorf("%s is shown as %q, want %q", raw, got, want)
		}
	}
}

// TestNoPartOfTheSecretIsShown has Autopay echo the secret where its words are cut.
func TestNoPartOfTheSecretIsShown(t *testing.T) {
	t.Parallel()
	for before := maxErrorText - len(testSecret) - 1; before < maxErrorText; before++ {
		said := cleanText(strings.Repeat("x", before)+testSecret, testSecret)
		if strings.Contains(said, testSecret[:2]) {
			t.Errorf("a part of the secret is shown: %q", said)
		}
	}
	// JSON may be quoted in two ways: Go's encoder escapes &, < and >.
	const secret = `first"half&second`
	for _, echo := range []string{secret, `{"a":"first\"half&second"}`, `{"a":"first\"half\u0026second"}`} {
		if said := cleanText(echo, secret); strings.Contains(said, "second") {
			t.Errorf("the secret is shown: %q", said)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const date = "Sat, 01 Jan 2000 01:00:00 GMT" // Autopay's clock is an hour ahead
	for value, want := range map[string]time.Duration{
		"": 0, "soon": 0, "-1": 0, "NaN": 0, "90": 90 * time.Second, " 90 ": 90 * time.Second, "90.5": 91 * time.Second, "0.1": time.Second,
		"36000": time.Hour, "1e400": time.Hour, "99999999999999999999": time.Hour,
		"Sat, 01 Jan 2000 01:30:00 GMT": 30 * time.Minute, "Sat, 01 Jan 2000 00:30:00 GMT": 0, "Sun, 02 Jan 2000 00:00:00 GMT": time.Hour,
	} {
		if got := parseRetryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, start2000); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
	if got := parseRetryAfter(http.Header{"Retry-After": {date}}, start2000); got != time.Hour {
		t.Errorf("without a Date: %s, want an hour by our own clock", got)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	const second, minute = time.Second, time.Minute
	for kind, want := range map[exchangeKind][]time.Duration{
		outage:      {second, 2 * second, 4 * second, 8 * second, 16 * second, 32 * second, minute, minute},
		unreachable: {second, 2 * second, 4 * second, 8 * second, 16 * second, 32 * second, minute, minute},
		busy:        {minute, 2 * minute, 4 * minute, 5 * minute, 5 * minute},
		refusal:     {5 * minute, 10 * minute, 15 * minute, 15 * minute},
		unusable:    {5 * minute, 10 * minute, 20 * minute, 40 * minute, 60 * minute, 60 * minute},
	} {
		waits := map[time.Duration]bool{} // credentials that fail together do not come back together
		for range 100 {
			var wait time.Duration
			for i, most := range want {
				least := max(most-min(most/4, maxJitter), want[0])
				if wait = backoffs[kind].after(wait); wait < least || wait > most {
					t.Fatalf("kind %d: wait %d is %s, want %s to %s", kind, i, wait, least, most)
				}
			}
			waits[wait] = true
		}
		if len(waits) < 90 {
			t.Errorf("kind %d: %d different waits of 100", kind, len(waits))
		}
	}
	if wait := backoffs[refusal].after(minute); wait != 5*minute {
		t.Errorf("a refusal after an outage waits %s, want 5 minutes", wait)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// beyond reports whether s holds a character outside of first to ~.
func beyond(first rune, s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < first || r > '~' })
}

// wantFit checks that a text is fit for people to read.
func wantFit(t *testing.T, text string) {
	t.Helper()
	if strings.ContainsFunc(text, notPrintable) || len([]rune(text)) > 800 {
		t.Errorf("a text is not fit to show: %.500q", text)
	}
}

// leak returns the first n bytes of a text that another one holds too, unless a third one
// has them; "" if there are none.
func leak(text, other, unless string, n int) string {
	for i := range max(len(text)-n+1, 0) {
		if run := text[i : i+n]; strings.Contains(other, run) && !strings.Contains(unless, run) {
			return run
		}
	}
	return ""
}

// FuzzAnswer gives the exchange any answer. In its body, LONG stands for one byte more
// than a token may have, SECRET for the client secret, and SENT for the secret as the
// request quoted it. Both go into a JSON string.
func FuzzAnswer(f *testing.F) {
	const (
		secret = `canary"secret<4711`
		// Everything that the engine itself says of an answer, but for its status.
		ours = "Autopay sent a malformed answer: it is larger than 1 MiB; it has a Content-Encoding, which was not asked for; " +
			"it is not a JSON object; access_token must be 1 to 65536 printable ASCII characters without spaces; token_type must be Bearer; " +
			"expires_in must be a whole number of seconds, at least 1; Autopay refused the credential (200): " +
			"Autopay answered 200: the answer is text/html, not JSON; a proxy or firewall may have sent it"
	)
	quote := func(s string) string {
		quoted, _ := json.Marshal(s)
		return string(quoted[1 : len(quoted)-1])
	}
	fill := strings.NewReplacer("LONG", strings.Repeat("x", 65537), "SECRET", quote(secret), "SENT", quote(quote(secret)))
	f.Fuzz(func(t *testing.T, status int, media, retryAfter, location, body string) {
		template := body + strings.ReplaceAll(body, "\\", "")
		status, body = max(status, -status, 0)%1000, fill.Replace(body)
		answerTo := func(body string) (tokenAnswer, *exchangeError) {
			c := &client{now: func() time.Time { return start2000 }, transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
				header := http.Header{"Content-Type": {media}, "Retry-After": {retryAfter}, "Location": {location}}
				return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
			})}
			return c.exchange(t.Context(), tokenRequest{
				tokenURL: defaultTokenURL, clientID: testID, clientSecret: secret, timeout: time.Minute,
			})
		}
		got, fault := answerTo(body)
		var said struct {
			Token       any         `json:"access_token"`
			Lifetime    json.Number `json:"expires_in"` // quoted or not
			Error       any         `json:"error"`
			Description any         `json:"error_description"`
		}
		_ = json.Unmarshal([]byte(strings.TrimPrefix(body, "\ufeff")), &said)
		if fault == nil {
			seconds, _ := said.Lifetime.Float64() // infinite if it is out of range
			want := time.Duration(min(seconds, maxLifetime)) * time.Second
			n := len(got.accessToken)
			if status/100 != 2 || n < 1 || n > 65536 || got.accessToken != said.Token || beyond('!', got.accessToken) || beyond(' ', got.scope) || got.lifetime != want {
				t.Errorf("taken from a %d: token %.99q, scope %.99q, lifetime %s", status, got.accessToken, got.scope, got.lifetime)
			}
			return
		}
		wantFit(t, fault.text)
		for _, s := range []string{secret, quote(secret)} {
			if part := leak(fault.text, s, template, 6); part != "" {
				t.Errorf("a part of the secret, %q, is shown: %q", part, fault.text)
			}
		}
		want := ruleFor(status, said.Error != nil && said.Error != "" && (said.Token == nil || said.Token == ""))
		if fault.noToken == want.counts || fault.kind != want.kind || fault.retryAfter < 0 || fault.retryAfter > time.Hour {
			t.Errorf("a %d is understood as %+v", status, fault)
		}
		// The text shows nothing of the raw answer but Autopay's error and description.
		_, mute := answerTo("")
		meant := ours + "\n"
		if mute != nil {
			meant += mute.text
		}
		for _, v := range []any{said.Error, said.Description} {
			if text, ok := v.(string); ok {
				meant += "\n" + text + "\n" + cleanText(text, secret)
			}
		}
		if part := leak(fault.text, body, meant, 16); part != "" {
			t.Errorf("%q of the raw answer is shown: %q", part, fault.text)
		}
	})
}
