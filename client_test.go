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
	"regexp"
	"slices"
	"strings"
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

// says reports whether there is an error that says something.
func (e *exchangeError) says(text string) bool { return e != nil && strings.Contains(e.text, text) }

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

func TestExchangeSendsWhatAutopayDocuments(t *testing.T) {
	t.Parallel()
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		// Without Accept-Encoding, any coding would be acceptable.
		media, coding := r.Header["Content-Type"], r.Header["Accept-Encoding"]
		got = fmt.Sprint(r.Method, " ", r.URL, media, coding, r.Close, " ", string(body))
		_, _ = w.Write([]byte(goodAnswer))
	}))
	t.Cleanup(srv.Close)
	answer, f := new(client).try(t, tokenRequest{tokenURL: srv.URL + "/oauth/token"})
	want := `POST /oauth/token [application/json] [identity] true {"audience":"https://api.autopay.io",` +
		`"client_id":"test-client","client_secret":"canary-secret-4711","grant_type":"client_credentials"}`
	if f != nil || got != want {
		t.Errorf("sent %s, want %s (%v)", got, want, f)
	}
	if answer != (tokenAnswer{"canary-token", "customer_club", 24 * time.Hour}) {
		t.Errorf("understood %+v", answer)
	}
}

// hostileHost hands every connection to a function, on an address that it returns.
func hostileHost(t *testing.T, serve func(net.Conn)) (address string) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return ln.Addr().String()
}

// reply reads a request, writes first once, and then rest again and again, until the other
// side closes.
func reply(conn net.Conn, first, rest string, pause time.Duration) {
	_, _ = conn.Read(make([]byte, 64<<10))
	_, err := io.WriteString(conn, first)
	for err == nil && rest != "" {
		_, err = io.WriteString(conn, rest)
		time.Sleep(pause)
	}
	_, _ = io.Copy(io.Discard, conn)
}

// TestExchangeWithHostileHosts: a host that answers in bad faith causes one failed
// attempt and no more. The exchange ends by its deadline, the connection is closed,
// and the error quotes nothing of the answer.
func TestExchangeWithHostileHosts(t *testing.T) {
	t.Parallel()
	const (
		ok      = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
		chunked = ok + "Transfer-Encoding: chunked\r\n\r\n"
		upgrade = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: canary\r\n\r\n"
		hints   = "HTTP/1.1 103 Early Hints\r\nX: canary\r\n\r\n"
		header  = "X-Canary: canary\r\n"

		broke, large = "the connection to Autopay broke", "larger than 1 MiB"
		late         = "did not answer within the request_timeout"
		coded        = "it has a Content-Encoding, which was not requested"

		slow = 50 * time.Millisecond
	)
	canaries := strings.Repeat("canary", 1000)
	extension := "1;" + strings.Repeat("x", 4000) + "\r\n \r\n"
	var bomb bytes.Buffer // inflated, it is a good answer
	w := gzip.NewWriter(&bomb)
	_, _ = io.WriteString(w, strings.Repeat(" ", maxAnswerSize/2)+goodAnswer)
	w.Close()
	gzipped := fmt.Sprintf("%sContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", ok, bomb.Len(), &bomb)

	for name, test := range map[string]struct {
		first, rest string        // the answer, and what is repeated without end
		pause       time.Duration // between two repetitions
		says        string
	}{
		"not HTTP":                       {"this is a canary-token\r\n\r\n", "", 0, broke},
		"another protocol, then silence": {upgrade, "", 0, "Autopay answered 101"},
		"another protocol, then a drip":  {upgrade, "x", slow, "Autopay answered 101"},
		"early hints without end":        {"", hints, 0, broke},
		"headers without end":            {"HTTP/1.1 200 OK\r\n", header, 0, broke},
		"headers that drip":              {"HTTP/1.1 200 OK\r\nX: ", "x", slow, late},
		"body without end":               {ok + "\r\n", canaries, 0, large},
		"body that drips":                {ok + "\r\n", " ", slow, late},
		"body in chunks without end":     {chunked, "6\r\ncanary\r\n", 0, large},
		"chunks with long extensions":    {chunked, extension, 0, broke},
		"trailers without end":           {chunked + "0\r\n", header, 0, broke},
		"a terabyte announced":           {ok + "Content-Length: 1099511627776\r\n\r\n", "", 0, late},
		"an error's body without end":    {"HTTP/1.1 500 x\r\n\r\n", canaries, 0, "Autopay answered 500"},
		"a refusal's body that drips":    {"HTTP/1.1 401 x\r\n\r\n", " ", slow, "Autopay refused"},
		"a gzip bomb":                    {gzipped, "", 0, coded},
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
					reply(theirs, test.first, test.rest, test.pause)
				}()
				return ours, nil
			}
			r := tokenRequest{tokenURL: "http://127.0.0.1", timeout: 5 * time.Second}
			_, f := (&client{transport: transport}).try(t, r)
			if !f.says(test.says) || f.says("canary") || f.noToken != f.says("refused") {
				t.Errorf("got %+v, want %q", f, test.says)
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
	const (
		late  = "did not answer within the request_timeout"
		old   = "it does not support TLS 1.2 or newer"
		tls11 = "\x16\x03\x02\x00\x2a\x02\x00\x00\x26\x03\x02" // begins a ServerHello
	)
	for name, test := range map[string]struct {
		first, rest, says string
		timeout           time.Duration
	}{
		"no answer":                {"", "", late, time.Second},
		"a drip":                   {"\x16\x03\x03\x40\x00", "\x00", late, time.Second},
		"TLS 1.1 without an alert": {tls11 + strings.Repeat("x", 32) + "\x00\xc0\x2f\x00", "", old, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			closed := make(chan bool)
			address := hostileHost(t, func(conn net.Conn) {
				reply(conn, test.first, test.rest, 50*time.Millisecond)
				close(closed)
			})
			_, f := new(client).try(t, tokenRequest{tokenURL: "https://" + address, timeout: test.timeout})
			if !f.says(test.says) {
				t.Errorf("got %v, want %q", f, test.says)
			}
			select {
			case <-closed:
			case <-time.After(time.Minute):
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
		sim.SetFault(autopaysim.Fault{Kind: "redirect", Status: status, Location: elsewhere})
		_, f := new(client).try(t, tokenRequest{tokenURL: url})
		if !f.says("a redirect, which is not followed") || !f.noToken || f.says(elsewhere) {
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
	heard := make(chan string, 2)
	proxy := hostileHost(t, func(conn net.Conn) {
		for range 2 {
			buf := make([]byte, 64<<10)
			n, _ := conn.Read(buf)
			heard <- string(buf[:n])
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n") // no answer to the TLS that follows
		}
	})
	run := func(url string) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxySeesNoSecret$", "-test.v")
		cmd.Env = append(os.Environ(), "NO_PROXY=", "no_proxy=",
			"TEST_TOKEN_URL="+url, "HTTPS_PROXY=http://"+proxy, "HTTP_PROXY=http://"+proxy)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	sim, good := newSim(t, nil)
	if run(good); len(heard) > 0 || sim.Issued(testID) != 1 {
		t.Errorf("a loopback host: %d tokens were issued, the proxy heard something: %v", sim.Issued(testID), len(heard) > 0)
	}
	run("https://autopay.invalid/oauth/token")
	connect, hello := <-heard, <-heard
	if !strings.HasPrefix(connect, "CONNECT autopay.invalid:443 HTTP/1.1\r\n") || !strings.HasPrefix(hello, "\x16\x03") {
		t.Errorf("the proxy heard %q and %q, want CONNECT and the beginning of TLS", connect, hello)
	}
	for _, secret := range []string{testSecret, testID, "oauth"} {
		if strings.Contains(connect+hello, secret) {
			t.Errorf("the proxy heard %q", secret)
		}
	}
}

// TestTokenURLReach: the secret may be sent to any https host, because whoever
// changes the host must bring the secret, and in plain text only to this machine.
func TestTokenURLReach(t *testing.T) {
	t.Parallel()
	for want, urls := range map[string]string{
		"": "https://api-auth.autopay.io/oauth/token https://10.0.0.1/token " +
			"https://169.254.169.254/token " + // no certificate is issued for it
			"http://localhost:8080/token http://127.0.0.1/token http://127.8.9.10:1/token " +
			"http://[::1]/token http://[::ffff:127.0.0.1]/token",
		"plain http is only allowed for loopback hosts": "http://169.254.169.254/latest/meta-data " +
			"http://[fd00:ec2::254]/latest/meta-data http://[::ffff:169.254.169.254]/ http://169.254.170.2/v2/credentials " +
			"http://100.100.100.200/latest/meta-data http://metadata.google.internal/ " +
			"http://10.0.0.1/ http://0.0.0.0/ http://[::]/ http://0/ http://127.1/ http://2130706433/ http://0x7f000001/ " +
			"http://0177.0.0.1/ http://LOCALHOST/ http://localhost./ http://localhost.evil.example/ " +
			"http://127.0.0.1.evil.example/ http://[::1%25eth0]/ gopher://127.0.0.1/ //api-auth.autopay.io/oauth/token",
		"user name": "http://127.0.0.1@evil.example/ https://me:secret@autopay.example/",
		"fragment":  "http://evil.example#127.0.0.1/ https://autopay.example/#x https://autopay.example/#",
		"port":      "https://autopay.example:0/ https://autopay.example:65536/",
		"an absolute https URL": "https://:8443/x http://evil.example\\127.0.0.1/ file:///etc/passwd " +
			"unix:///run/docker.sock /oauth/token https:api-auth.autopay.io https://api-auth.autopay.io/\r\nHost:evil",
	} {
		for url := range strings.SplitSeq(urls, " ") {
			wantError(t, url, checkTokenURL(url), want)
		}
	}
}

// TestExchangeWithoutAConnection: what a proxy does wrong is not blamed on Autopay. Such an
// exchange certainly cost no token.
func TestExchangeWithoutAConnection(t *testing.T) {
	t.Parallel()
	// answering is a proxy.
	answering := func(text string) string {
		return "http://" + hostileHost(t, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(conn, text)
		})
	}
	_, plain := newSim(t, nil)
	const proxy = "the proxy "
	const auth = "HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\nContent-Length: 6\r\n\r\ncanary"
	for name, test := range map[string]struct {
		proxy, url string // "": none, Autopay
		says       string
		kind       exchangeKind
	}{
		"nobody listens":        {"", nobody(), "connection refused", outage},
		"no such host":          {"", "https://autopay.invalid/", "its host name does not resolve", outage},
		"http where TLS is due": {"", strings.Replace(plain, "http:", "https:", 1), "it does not speak TLS", unreachable},

		"proxy: 407":            {answering(auth), "", proxy + "answered 407 Proxy Authentication Required", unreachable},
		"proxy: 403":            {answering("HTTP/1.1 403 x\r\n\r\n"), "", proxy + "answered 403 Forbidden", unreachable},
		"proxy: 502":            {answering("HTTP/1.1 502 x\r\n\r\ncanary"), "", proxy + "answered 502 Bad Gateway", outage},
		"proxy: 204":            {answering("HTTP/1.1 204 x\r\n\r\n"), "", proxy + "answered 204 No Content", unreachable},
		"proxy: nobody listens": {nobody(), "", proxy + "can't be reached: connection refused", outage},
		"proxy: no such host":   {"//proxy.invalid", "", proxy + "can't be reached: its host name does not resolve", outage},
		"proxy: hangs up":       {answering(""), "", "no connection could be made", outage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			transport := newTransport("", new(atomic.Bool))
			if test.proxy != "" {
				transport.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(test.proxy) }
			}
			_, got := (&client{transport: transport}).try(t, tokenRequest{tokenURL: test.url})
			want := exchangeError{"Autopay can't be reached: " + test.says, test.kind, true, 0}
			if got == nil || *got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestExchangeOverTLS: the secret is sent to no host that can't prove that it is the one which
// token_url names. What is wrong is told apart.
func TestExchangeOverTLS(t *testing.T) {
	t.Parallel()
	_, otherCA, err := autopaysim.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	const (
		v10, v11, v12 = tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12

		clock   = " (check the clock of Vault's server)"
		unknown = "its certificate is signed by an unknown authority (check ca_cert)"
		wants   = "it requires a client certificate, which is not supported"
	)
	now, asIs := time.Now(), func(*x509.Certificate) {}
	expired := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }
	early := func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }
	nameless := func(c *x509.Certificate) { c.IPAddresses = nil }
	rebound := func(c *x509.Certificate) { c.IPAddresses[0] = net.IP{10, 0, 0, 1} } // the name now leads here
	clients := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	for name, test := range map[string]struct {
		change   func(*x509.Certificate)
		min, max uint16 // versions of TLS; 0: Go's defaults
		auth     tls.ClientAuthType
		ca       string // "": the server's own
		says     string // "": a token is obtained
	}{
		"good":                         {asIs, 0, 0, 0, "", ""},
		"TLS 1.2":                      {asIs, 0, v12, 0, "", ""},
		"TLS 1.1":                      {asIs, v10, v11, 0, "", "it does not support TLS 1.2 or newer"},
		"unknown authority":            {asIs, 0, 0, 0, string(otherCA), unknown},
		"system roots instead":         {asIs, 0, 0, 0, "system", unknown},
		"expired":                      {expired, 0, 0, 0, "", "its certificate has expired" + clock},
		"not valid yet":                {early, 0, 0, 0, "", "its certificate is not valid yet" + clock},
		"no name":                      {nameless, 0, 0, 0, "", "its certificate has no subject alternative name"},
		"another host":                 {rebound, 0, 0, 0, "", "its certificate is for another host"},
		"a client's":                   {clients, 0, 0, 0, "", "its certificate is not a server certificate"},
		"wants a certificate, TLS 1.2": {asIs, 0, v12, tls.RequireAnyClientCert, "", wants},
		"wants a certificate, TLS 1.3": {asIs, 0, 0, tls.RequireAnyClientCert, "", wants},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			cert := &x509.Certificate{
				SerialNumber: big.NewInt(1), IPAddresses: []net.IP{{127, 0, 0, 1}},
				NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
				BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
			}
			test.change(cert)
			der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			sim, url := newSim(t, &tls.Config{
				MinVersion: test.min, MaxVersion: test.max, ClientAuth: test.auth,
				Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
			})
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
	counts      bool
	wait        time.Duration // the least before the next attempt
	kind        exchangeKind
}

// answerRules says what rules 5 and 8 (doc.go) mean for each status. It repeats
// no condition of the code, so that a test which uses it sees a change of one.
var answerRules = []answerRule{
	{0, 199, true, time.Second, outage}, // 0: no answer
	{200, 299, true, 5 * time.Minute, unusable},
	{300, 399, false, time.Second, unreachable},
	{400, 406, false, 5 * time.Minute, refusal},
	{407, 407, false, time.Second, unreachable},
	{408, 408, false, time.Second, outage},
	{409, 428, false, 5 * time.Minute, refusal},
	{429, 429, false, time.Minute, busy},
	{430, 499, false, 5 * time.Minute, refusal},
	{500, 502, true, time.Second, outage},
	{503, 503, false, time.Second, outage},
	{504, 999, true, time.Second, outage},
}

// ruleFor returns the rule for a status, whose answer may hold an OAuth error.
func ruleFor(status int, oauthError bool) answerRule {
	i := slices.IndexFunc(answerRules, func(r answerRule) bool { return r.first <= status && status <= r.last })
	rule := answerRules[i]
	if rule.kind == unusable && oauthError {
		rule.kind = refusal
	}
	return rule
}

func TestExchangeAnswers(t *testing.T) {
	t.Parallel()
	const (
		used   = "" // the answer's token is
		denied = `{"error":"access_denied","error_description":"Unauthorized"}`
		bom    = "\ufeff"
	)
	plain := func(status int, body string) answer { return answer{status, "application/json", body} }
	empty := func(status int) []answer { return []answer{plain(status, "")} }
	html := func(status int) answer {
		return answer{status, "text/html", "<!DOCTYPE html><html>canary-token</html>"}
	}
	good := func(media string) answer { return answer{200, media, goodAnswer} }
	// with returns good answers with other values of a field; "" leaves it out.
	with := func(field string, values ...string) (all []answer) {
		for _, value := range values {
			body := map[string]json.RawMessage{
				"access_token": []byte(`"t"`), "expires_in": []byte("60"), "token_type": []byte(`"Bearer"`), "scope": []byte(`"s"`),
			}
			if body[field] = []byte(value); value == "" {
				delete(body, field)
			}
			text, _ := json.Marshal(body)
			all = append(all, plain(200, string(text)))
		}
		return all
	}
	long := `"` + strings.Repeat("x", maxTokenSize+1) + `"`
	for says, answers := range map[string][]answer{
		used: slices.Concat(
			[]answer{good("application/json"), good("application/json; charset=utf-8"), good("text/html"), good("")},
			[]answer{good("application/json, application/json"), plain(201, goodAnswer), plain(200, bom+goodAnswer)},
			with("token_type", `"bearer"`, "", "null"),
			with("scope", "", "null", `"a\nb"`, `["a","b c",1]`, `"läs"`, long, "1e400"),
			with("expires_in", "86400.0", "315360000", `"86400"`, "315360001", "1e400", `"99999999999999999999999"`),
			with("error", `"access_denied"`), // and a token
		),
		"not a JSON object": {
			plain(200, ""), plain(200, "canary-token"), plain(200, "[]"), plain(200, goodAnswer+"x"), plain(204, ""),
		},
		"larger than 1 MiB": {plain(200, strings.Repeat(" ", maxAnswerSize)+goodAnswer)},
		"access_token must be": with("access_token", "", "null", `""`, "4711", `{"canary-token":1}`, `"canary token"`,
			`"a\r\nX-Evil: 1"`, `"tökn"`, long),
		"token_type must be Bearer": with("token_type", `"mac"`, "1"),
		"expires_in must be": with("expires_in",
			"", "null", "0", "-60", "-1e400", "59.5", `"soon"`, `"6e1"`, "[60]"),
		"Autopay answered 200: the answer is text/html, not JSON; a proxy or firewall may have sent it": {
			html(200), {200, "", "\n<html>canary-token"},
		},
		"Autopay refused the credential (200): access_denied": {
			plain(200, denied), plain(200, `{"error":"access_denied","access_token":null}`),
		},
		"Autopay refused the credential (200)":                  {plain(200, `{"error":{"canary":1}}`)},
		"Autopay refused the credential (400): invalid_request": {plain(400, `{"error":"invalid_request"}`)},
		"Autopay refused the credential (401): access_denied: Unauthorized": {
			plain(401, denied), plain(401, bom+denied), {401, "text/html", denied},
		},
		"Autopay refused the credential (401)": {
			{401, "text/plain", "canary-token"}, plain(401, `{"error":["x"],"error_description":{"a":1}}`),
		},
		"(403): no: bad secret [redacted]": {
			plain(403, `{"error":"no","error_description":"bad secret `+testSecret+`"}`),
		},
		"Autopay answered 403 Forbidden: the answer is text/html, not JSON": {html(403)},
		"Autopay answered 302, a redirect, which is not followed":           {html(302)},
		"Autopay answered 404 Not Found (check token_url): the answer is":   {html(404)},
		"Autopay answered 405 Method Not Allowed (check token_url)":         empty(405),
		"the proxy answered 407 Proxy Authentication Required":              empty(407),
		"Autopay answered 408 Request Timeout":                              empty(408),
		"Autopay answered 410 Gone (check token_url)":                       empty(410),
		"Autopay answered 415 Unsupported Media Type (check token_url)":     empty(415),
		"Autopay answered 421 Misdirected Request (check token_url)":        empty(421),
		"Autopay answered 422 Unprocessable Entity: no":                     {plain(422, `{"error":"no"}`)},
		"Autopay answered 429 Too Many Requests":                            empty(429),
		": " + strings.Repeat("ä", 199) + "…": {
			plain(500, `{"error":"`+strings.Repeat("ä", 5000)+`"}`),
		},
		"Autopay answered 500 Internal Server Error: a [31m  b": {
			plain(500, `{"error":"a\u001b[31m\r\nb\u202e"}`),
		},
		"Autopay answered 503 Service Unavailable: the answer is text/html": {html(503)},
		"Autopay answered 504 Gateway Timeout: the answer is text/html":     {html(504)},
		"Autopay answered 599": empty(599),
	} {
		for i, answer := range answers {
			t.Run(fmt.Sprintf("%.40s, %d", cmp.Or(says, "used"), i), func(t *testing.T) {
				t.Parallel()
				got, f := (&client{transport: answer}).try(t, tokenRequest{})
				if says == used {
					if f != nil || got.accessToken == "" || got.lifetime < time.Second {
						t.Errorf("got %+v, %v from %.100s", got, f, answer.body)
					}
					return
				}
				if !f.says(says) || f.says("canary") || len([]rune(f.text)) > 500 {
					t.Fatalf("got %v, want %q", f, says)
				}
				rule := ruleFor(answer.status, strings.HasPrefix(says, "Autopay refused the credential (200)"))
				if want := (exchangeError{f.text, rule.kind, !rule.counts, 0}); *f != want {
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
		"": "", "null": "", `{"a":1}`: "",
		`"a b"`: "a b", `"a\nb"`: "a b", `["a","b c",1,null]`: "a b c", `"läs skriv"`: "skriv",
	} {
		if got := scopeText([]byte(raw)); got != want {
			t.Errorf("%s is shown as %q, want %q", raw, got, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const date = "Sat, 01 Jan 2000 01:00:00 GMT" // Autopay's clock is an hour ahead
	for value, want := range map[string]time.Duration{
		"": 0, "soon": 0, "-1": 0, "NaN": 0,
		"90": 90 * time.Second, " 90 ": 90 * time.Second, "90.5": 91 * time.Second, "0.1": time.Second,
		"36000": time.Hour, "1e400": time.Hour, "99999999999999999999": time.Hour,
		"Sat, 01 Jan 2000 01:30:00 GMT": 30 * time.Minute, "Sat, 01 Jan 2000 00:30:00 GMT": 0,
		"Sun, 02 Jan 2000 00:00:00 GMT": time.Hour,
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
	if wait := backoffs[outage].after(30 * minute); wait != second {
		t.Errorf("an outage after a Retry-After of 30 minutes waits %s, want a second", wait)
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

// FuzzAnswer gives the exchange any answer. In its body, LONG stands for one byte more
// than a token may have, SECRET for the client secret, and SENT for the secret as the
// request quoted it, PLAIN for it as other encoders quote it, which do not escape <, and
// PIECES for the secret with a character in it that is not shown. All of them go into a
// JSON string.
func FuzzAnswer(f *testing.F) {
	// Everything that the engine itself says of an answer.
	ours := regexp.MustCompile(`^(Autopay sent a malformed answer: (it is larger than 1 MiB|` +
		`it has a Content-Encoding, which was not requested|it is not a JSON object|` +
		`access_token must be 1 to 65536 printable ASCII characters without spaces|token_type must be Bearer|` +
		`expires_in must be a whole number of seconds, at least 1)|Autopay refused the credential \(\d+\)|` +
		`Autopay can't be reached: the proxy answered 407 Proxy Authentication Required|` +
		`Autopay answered \d+[a-zA-Z' -]*(, a redirect, which is not followed)?( \(check token_url\))?` +
		`(: the answer is text/html, not JSON; a proxy or firewall may have sent it)?)$`)
	quote := func(s string) string {
		quoted, _ := json.Marshal(s)
		return string(quoted[1 : len(quoted)-1])
	}
	f.Fuzz(func(t *testing.T, status int, media, retryAfter, location, template string) {
		status = max(status, -status, 0) % 1000
		exchange := func(secret string) (body string, got tokenAnswer, x *exchangeError) {
			body = strings.NewReplacer("LONG", strings.Repeat("x", 65537), "SECRET", quote(secret),
				"SENT", quote(quote(secret)), "PLAIN", quote(strings.ReplaceAll(secret, `"`, `\"`)),
				"PIECES", quote(secret[:3]+"\u200b"+secret[3:])).Replace(template)
			c := &client{now: func() time.Time { return start2000 }}
			c.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
				header := http.Header{"Content-Type": {media}, "Retry-After": {retryAfter}, "Location": {location}}
				return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
			})
			got, x = c.exchange(t.Context(), tokenRequest{
				tokenURL: defaultTokenURL, clientID: testID, clientSecret: secret, timeout: time.Minute,
			})
			return body, got, x
		}
		const secret, another = `zebra7"quoted<4711`, `tiger9"locked<0815`
		body, got, fault := exchange(secret)
		var said struct {
			Token       any         `json:"access_token"`
			Lifetime    json.Number `json:"expires_in"` // quoted or not
			Error       any         `json:"error"`
			Description any         `json:"error_description"`
		}
		_ = json.Unmarshal([]byte(strings.TrimPrefix(body, "\ufeff")), &said)
		if fault == nil {
			seconds, _ := said.Lifetime.Float64() // infinite if it is out of range
			life := time.Duration(min(seconds, maxLifetime)) * time.Second
			token, scope := got.accessToken, got.scope
			fits := len(token) > 0 && len(token) <= 65536 && !beyond('!', token) && !beyond(' ', scope)
			if status/100 != 2 || token != said.Token || !fits || got.lifetime != life {
				t.Errorf("taken from a %d: token %.99q, scope %.99q, lifetime %s", status, token, scope, got.lifetime)
			}
			return
		}
		wantFit(t, fault.text)
		if _, _, other := exchange(another); other == nil || *other != *fault {
			t.Errorf("with another secret it is %v, so this shows the secret: %v", other, fault)
		}
		rule := ruleFor(status, said.Error != nil && said.Error != "" && (said.Token == nil || said.Token == ""))
		if fault.noToken == rule.counts || fault.kind != rule.kind || fault.retryAfter < 0 || fault.retryAfter > time.Hour {
			t.Errorf("a %d is understood as %+v", status, fault)
		}
		// Of the answer, the text shows nothing but Autopay's error and description.
		words := ""
		for _, v := range []any{said.Error, said.Description} {
			if text, ok := v.(string); ok && text != "" {
				words += ": " + cleanText(text, secret)
			}
		}
		if rest := strings.Replace(fault.text, words, "", 1); !ours.MatchString(rest) {
			t.Errorf("%q of the answer is shown: %q", rest, fault.text)
		}
	})
}
