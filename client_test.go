package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestExchangeOverRealConnections covers what a RoundTripper can't: dialling,
// TLS, headers, and bodies that come slowly.
func TestExchangeOverRealConnections(t *testing.T) {
	t.Parallel()
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	t.Cleanup(sim.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	raw := func(said string) string { // a server that says one thing to whoever connects
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = conn.Write([]byte(said))
				_ = conn.Close()
			}
		}()
		return "http://" + ln.Addr().String()
	}
	good := srv.URL + autopaysim.TokenPath
	for name, test := range map[string]struct {
		url     string
		fault   autopaysim.Fault
		says    string
		noToken bool
	}{
		"good":                  {good, autopaysim.Fault{}, "", false},
		"nobody listens":        {closed.URL, autopaysim.Fault{}, "Autopay can't be reached: connection refused", true},
		"no such host":          {"https://autopay.invalid/", autopaysim.Fault{}, "Autopay can't be reached: its host name does not resolve", true},
		"http where TLS is due": {strings.Replace(good, "http:", "https:", 1), autopaysim.Fault{}, "Autopay can't be reached: it does not speak TLS", true},
		"not HTTP":              {raw("this is a canary-token"), autopaysim.Fault{}, "the connection to Autopay broke", false},
		"headers without end":   {raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("canary-token", 10_000) + "\r\n\r\n"), autopaysim.Fault{}, "the connection to Autopay broke", false},
		"hang":                  {good, autopaysim.Fault{Kind: autopaysim.FaultHang}, "Autopay did not answer within the request_timeout of 1s", false},
		"slow drip":             {good, autopaysim.Fault{Kind: autopaysim.FaultDrip, Delay: 100 * time.Millisecond}, "Autopay did not answer within the request_timeout of 1s", false},
		"cut":                   {good, autopaysim.Fault{Kind: autopaysim.FaultCut}, "the connection to Autopay broke", false},
		"redirect":              {good, autopaysim.Fault{Kind: autopaysim.FaultRedirect}, "a redirect, which is not followed", true},
		"huge":                  {good, autopaysim.Fault{Kind: autopaysim.FaultHuge}, "larger than 1 MiB", false},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // they share the stand-in's fault
			sim.SetFault(test.fault)
			before := sim.Requests("")
			c := &client{now: time.Now}
			timeout := time.Minute
			if strings.HasSuffix(test.says, "request_timeout of 1s") {
				timeout = time.Second
			}
			_, f := c.exchange(t.Context(), tokenRequest{
				tokenURL: test.url, clientID: testID, clientSecret: testSecret, audience: defaultAudience, timeout: timeout,
			})
			switch {
			case test.says == "" && f == nil:
			case f == nil || test.says == "" || !strings.Contains(f.text, test.says) || f.noToken != test.noToken || strings.Contains(f.text, "canary"):
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
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		got = fmt.Sprintf("%s %s %s %s close=%v", r.Method, r.URL.Path, r.Header.Get("Content-Type"), body, r.Close)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(goodAnswer))
	}))
	t.Cleanup(srv.Close)
	c := &client{now: time.Now}
	answer, f := c.exchange(t.Context(), tokenRequest{
		tokenURL: srv.URL + "/oauth/token", clientID: "i", clientSecret: "s", audience: "a", timeout: time.Minute,
	})
	want := `POST /oauth/token application/json {"audience":"a","client_id":"i","client_secret":"s","grant_type":"client_credentials"} close=true`
	if f != nil || got != want {
		t.Errorf("sent %s, want %s (%v)", got, want, f)
	}
	if answer != (tokenAnswer{"canary-token", "customer_club", 24 * time.Hour}) {
		t.Errorf("understood %+v", answer)
	}
}

func TestExchangeEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		sim := autopaysim.New(autopaysim.Options{})
		sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
		c := &client{now: time.Now, transport: sim.RoundTripper()}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, f := c.exchange(ctx, tokenRequest{tokenURL: defaultTokenURL, clientID: "i", clientSecret: "s", timeout: time.Minute})
		if f == nil || time.Since(start2000) != time.Second {
			t.Errorf("got %v after %s", f, time.Since(start2000))
		}
	})
}

// hostileHost hands every connection to a function. Its done accepts no more of them
// and reports whether the other side has closed them all.
type hostileHost struct {
	addr string
	done func() bool
}

func newHostileHost(t *testing.T, say func(net.Conn)) hostileHost {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				say(conn)
				_, _ = io.Copy(io.Discard, conn) // until the other side closes
			})
		}
	})
	return hostileHost{ln.Addr().String(), func() bool {
		ln.Close()
		over := make(chan struct{})
		go func() { conns.Wait(); close(over) }()
		select {
		case <-over:
			return true
		case <-time.After(time.Minute):
			return false
		}
	}}
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
		"a gzip bomb":                    {reply(ok+"Content-Encoding: gzip\r\nContent-Length: "+fmt.Sprint(bomb.Len())+"\r\n\r\n"+bomb.String(), "", 0), "not a JSON object"},
	} {
		runInBubble(t, name, func(t *testing.T) {
			transport, err := newTransport("")
			if err != nil {
				t.Fatal(err)
			}
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
			_, f := (&client{now: time.Now, transport: transport}).exchange(t.Context(), tokenRequest{
				tokenURL: "http://127.0.0.1", clientID: testID, clientSecret: testSecret, timeout: 5 * time.Second,
			})
			if f == nil || !strings.Contains(f.text, test.says) || strings.Contains(f.text, "canary") {
				t.Errorf("got %v, want %q", f, test.says)
			}
			if took := time.Since(start2000); took > 5*time.Second {
				t.Errorf("the exchange ends after %s", took)
			}
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
	for name, say := range map[string]func(net.Conn){
		"no answer": func(net.Conn) {},
		"a drip":    reply("\x16\x03\x03\x40\x00", "\x00", 50*time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := newHostileHost(t, say)
			_, f := (&client{now: time.Now}).exchange(t.Context(), tokenRequest{
				tokenURL: "https://" + host.addr, clientID: testID, clientSecret: testSecret, timeout: time.Second,
			})
			if f == nil || !strings.Contains(f.text, "did not answer within the request_timeout") {
				t.Errorf("got %v", f)
			}
			if !host.done() {
				t.Error("the connection is still open")
			}
		})
	}
}

// TestNoGzipIsAskedFor shows why no answer is ever decompressed.
func TestNoGzipIsAskedFor(t *testing.T) {
	t.Parallel()
	seen := make(chan http.Header, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	t.Cleanup(srv.Close)
	_, _ = (&client{now: time.Now}).exchange(t.Context(), tokenRequest{tokenURL: srv.URL, clientID: "i", clientSecret: "s", timeout: time.Minute})
	if got := (<-seen).Get("Accept-Encoding"); got != "" {
		t.Errorf("Accept-Encoding: %s", got)
	}
}

// TestTLSIsNotDowngraded: the secret is sent to no host that can't prove that it is
// the one which token_url names.
func TestTLSIsNotDowngraded(t *testing.T) {
	t.Parallel()
	good, ca, err := autopaysim.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	other, otherCA, err := autopaysim.SelfSigned("autopay.example") // a name that now leads here: DNS rebinding
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		server *tls.Config
		ca     []byte
		says   string // "": a token is obtained
	}{
		"TLS 1.2":              {&tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12, MinVersion: tls.VersionTLS12}, ca, ""},
		"TLS 1.1":              {&tls.Config{Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}, ca, "no connection could be made"},
		"unknown authority":    {&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12}, otherCA, "signed by an unknown authority"},
		"another host's":       {&tls.Config{Certificates: []tls.Certificate{other}, MinVersion: tls.VersionTLS12}, otherCA, "its certificate is for another host"},
		"system roots instead": {&tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12}, nil, "signed by an unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
			srv := httptest.NewUnstartedServer(sim)
			srv.TLS = test.server
			srv.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are wanted
			srv.StartTLS()
			t.Cleanup(srv.Close)
			_, f := (&client{now: time.Now}).exchange(t.Context(), tokenRequest{
				tokenURL: srv.URL + autopaysim.TokenPath, clientID: testID, clientSecret: testSecret, audience: defaultAudience,
				caCert: string(test.ca), timeout: time.Minute,
			})
			if test.says == "" {
				if f != nil {
					t.Fatal(f)
				}
				return
			}
			if f == nil || !strings.Contains(f.text, test.says) {
				t.Errorf("got %v, want %q", f, test.says)
			}
			if n := sim.Requests(""); n != 0 {
				t.Error("the secret was sent")
			}
		})
	}
}

// TestRedirectsCarryNothing redirects the engine to a host that records requests.
func TestRedirectsCarryNothing(t *testing.T) {
	t.Parallel()
	elsewhere := autopaysim.New(autopaysim.Options{})
	thief := httptest.NewServer(elsewhere)
	t.Cleanup(thief.Close)
	for _, status := range []int{300, 301, 302, 303, 305, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			sim := autopaysim.New(autopaysim.Options{})
			sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultRedirect, Status: status, Location: thief.URL + autopaysim.TokenPath})
			srv := httptest.NewServer(sim)
			t.Cleanup(srv.Close)
			_, f := (&client{now: time.Now}).exchange(t.Context(), tokenRequest{
				tokenURL: srv.URL + autopaysim.TokenPath, clientID: testID, clientSecret: testSecret, timeout: time.Minute,
			})
			if f == nil || !strings.Contains(f.text, "a redirect, which is not followed") || strings.Contains(f.text, thief.URL) {
				t.Error(f)
			}
			if n := sim.Requests(""); n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
			if n := elsewhere.Requests(""); n != 0 {
				t.Error("the secret was sent on")
			}
		})
	}
}

// TestProxySeesNoSecret has a proxy in the environment. The proxy learns the host and
// nothing else, and it is not used for a loopback host. net/http reads the
// environment once per process, so the test runs itself as another process.
func TestProxySeesNoSecret(t *testing.T) {
	t.Parallel()
	if url := os.Getenv("TEST_TOKEN_URL"); url != "" {
		_, f := (&client{now: time.Now}).exchange(t.Context(), tokenRequest{
			tokenURL: url, clientID: testID, clientSecret: testSecret, audience: defaultAudience, timeout: time.Minute,
		})
		t.Logf("fault %v", f)
		return
	}
	var mu sync.Mutex
	var heard bytes.Buffer
	proxy := newHostileHost(t, func(conn net.Conn) {
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
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
	srv := httptest.NewServer(sim)
	t.Cleanup(srv.Close)
	run := func(url string) string {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxySeesNoSecret$", "-test.v")
		cmd.Env = append(os.Environ(), "TEST_TOKEN_URL="+url, "HTTPS_PROXY=http://"+proxy.addr, "HTTP_PROXY=http://"+proxy.addr, "NO_PROXY=", "no_proxy=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		mu.Lock()
		defer mu.Unlock()
		defer heard.Reset()
		return heard.String()
	}
	if got := run(srv.URL + autopaysim.TokenPath); got != "" || sim.Issued(testID) != 1 {
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
	const absolute, plain = "an absolute https URL", "plain http is allowed to a loopback host only"
	for url, want := range map[string]string{
		"https://api-auth.autopay.io/oauth/token": "",
		"https://10.0.0.1/token":                  "",
		"https://169.254.169.254/token":           "", // no certificate is issued for it
		"http://localhost:8080/token":             "",
		"http://127.0.0.1/token":                  "",
		"http://127.8.9.10:1/token":               "",
		"http://[::1]/token":                      "",
		"http://[::ffff:127.0.0.1]/token":         "",

		"http://169.254.169.254/latest/meta-data":    plain, // AWS, Azure, GCP, OpenStack
		"http://[fd00:ec2::254]/latest/meta-data":    plain, // AWS
		"http://[::ffff:169.254.169.254]/":           plain,
		"http://100.100.100.200/latest/meta-data":    plain, // Alibaba
		"http://metadata.google.internal/":           plain,
		"http://169.254.170.2/v2/credentials":        plain, // ECS
		"http://10.0.0.1/":                           plain,
		"http://0.0.0.0/":                            plain, // means this machine to Linux
		"http://[::]/":                               plain,
		"http://0/":                                  plain,
		"http://127.1/":                              plain,
		"http://2130706433/":                         plain,
		"http://0x7f000001/":                         plain,
		"http://0177.0.0.1/":                         plain,
		"http://LOCALHOST/":                          plain,
		"http://localhost./":                         plain,
		"http://localhost.evil.example/":             plain,
		"http://127.0.0.1.evil.example/":             plain,
		"http://127.0.0.1@evil.example/":             "user name",
		"https://me:secret@autopay.example/":         "user name",
		"http://evil.example#127.0.0.1/":             "fragment",
		"https://autopay.example/#x":                 "fragment",
		"https://autopay.example/#":                  "fragment",
		"https://autopay.example:0/":                 "port",
		"https://autopay.example:65536/":             "port",
		"https://:8443/x":                            absolute,
		"http://evil.example\\127.0.0.1/":            absolute,
		"http://[::1%25eth0]/":                       plain,
		"file:///etc/passwd":                         absolute,
		"gopher://127.0.0.1/":                        plain,
		"unix:///run/docker.sock":                    absolute,
		"//api-auth.autopay.io/oauth/token":          plain,
		"/oauth/token":                               absolute,
		"https:api-auth.autopay.io":                  absolute,
		"https://api-auth.autopay.io/\r\nHost: evil": absolute,
	} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			err := checkTokenURL(url)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}
