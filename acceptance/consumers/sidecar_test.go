//go:build acceptance

package consumers

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// freeAddress returns a loopback address that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// send makes one request as an application that knows nothing of tokens. Its
// body can't be sent again, so that Go's client hides no failure by a retry.
func send(t *testing.T, url string) error {
	t.Helper()
	body := io.NopCloser(strings.NewReader("one payment"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer of-the-application")
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	if !resp.Close {
		return errors.New("nginx keeps the connection, which a reload may close under a request")
	}
	return nil
}

// TestExampleSidecar runs Vault Agent and nginx with the files of
// examples/sidecar under load, while the token is replaced five times.
func TestExampleSidecar(t *testing.T) {
	t.Parallel()
	needs(t, "nginx -v")
	const rotations, period = 5, 6 * time.Second
	m, p := exampleVault(t), harness.StartAutopayTLS(t)
	p.SetLifetime(20 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", int(period.Seconds()), "ca_cert", p.CACert()))

	// The API is slow when asked to be, so that requests are under way whenever nginx reloads.
	var mu sync.Mutex               // guards first
	first := map[string]time.Time{} // when each token was first seen
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		mu.Lock()
		if first[token].IsZero() {
			first[token] = time.Now()
		}
		mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Query().Has("slow") {
			time.Sleep(2 * time.Second)
		}
		r.Method = http.MethodGet // the simulator's API knows no other
		p.ServeHTTP(w, r)
	})) // with the certificate of the simulator, which is for example.com
	t.Cleanup(web.Close)

	// Where the examples say /run/autopay and /etc/autopay/nginx.conf, a directory of the test's own.
	run, listen := t.TempDir(), freeAddress(t)
	conf := filepath.Join(run, "nginx.conf")
	nginxConf := func(listen, run, ca string) string {
		return example(t, "sidecar/nginx.conf",
			"127.0.0.1:8081", listen, "https://api.autopay.io", web.URL, "api.autopay.io", "example.com",
			"/etc/ssl/certs/ca-certificates.crt", ca, "/run/autopay", run)
	}
	ca := harness.WriteFile(t, filepath.Join(run, "ca.crt"), p.CACert(), 0o644)
	harness.WriteFile(t, conf, nginxConf(listen, run, ca), 0o600)

	startVaultProgram(t, "agent", example(t, "sidecar/agent.hcl",
		"https://vault.example.com:8200", m.Addr, "/etc/autopay/nginx.conf", conf,
		"/etc/autopay", appRole(t, m.Server, "sidecar", "app.hcl"), "/run/autopay", run))
	header := filepath.Join(run, "authorization.conf")
	harness.Eventually(t, time.Minute, "Agent renders no header", func() bool {
		info, err := os.Stat(header)
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("the file with the token has mode %v", info.Mode())
		}
		return err == nil
	})
	url := "http://" + listen + autopaysim.ResourcePath
	startNginx(t, conf, listen)

	// The load runs until the token of the last rotation is in use.
	stop := make(chan struct{})
	var running sync.WaitGroup
	var requests, failures atomic.Int32
	for _, query := range []string{"?slow", "", "", ""} {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				requests.Add(1)
				if err := send(t, url+query); err != nil {
					failures.Add(1)
					t.Errorf("a request failed: %v", err)
				}
			}
		})
	}
	began := time.Now()
	harness.Eventually(t, 2*time.Minute, "the tokens of the rotations are not all used", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(first) > rotations
	})
	took := time.Since(began)
	close(stop)
	running.Wait()

	stats, sent := p.Stats(), int(requests.Load())
	if stats.ResourceRefused != 0 || stats.DeadTokensSeen != 0 || stats.ResourceRequests != sent || sent < 1000 {
		t.Errorf("the API got %d requests for %d, want 1000 or more; it refused %d, saw %d dead tokens",
			stats.ResourceRequests, sent, stats.ResourceRefused, stats.DeadTokensSeen)
	}
	late := time.Duration(0)
	for i, at := range slices.SortedFunc(maps.Values(first), time.Time.Compare) {
		if i > 0 {
			late = max(late, at.Sub(issues(p, cred.ID)[i]))
		}
	}
	t.Logf("FIGURE: sidecar, %d requests in %v over %d rotations: %d failed; the API refused %d and saw %d dead tokens; "+
		"a new token was first used at most %v after Autopay issued it", sent, took.Round(time.Second), len(first)-1,
		failures.Load(), stats.ResourceRefused, stats.DeadTokensSeen, late.Round(100*time.Millisecond))

	// A server whose certificate nginx can't verify must not get the token.
	other := t.TempDir()
	harness.WriteFile(t, filepath.Join(other, "ca.crt"), harness.OtherCert(t), 0o600)
	harness.WriteFile(t, filepath.Join(other, "authorization.conf"), harness.ReadFile(t, header), 0o600)
	strict := freeAddress(t)
	conf = nginxConf(strict, other, filepath.Join(other, "ca.crt"))
	startNginx(t, harness.WriteFile(t, filepath.Join(other, "nginx.conf"), conf, 0o600), strict)
	err := send(t, "http://"+strict+autopaysim.ResourcePath)
	if err == nil || !strings.HasPrefix(err.Error(), "502") || p.Stats().ResourceRequests != sent {
		t.Errorf("a server with a foreign certificate: %v, want 502 and no request", err)
	}
}

// startNginx runs nginx until it listens.
func startNginx(t *testing.T, conf, listen string) {
	t.Helper()
	nginx := startProgram(t, []string{"PATH=" + os.Getenv("PATH")}, "nginx", "-e", "stderr", "-c", conf)
	harness.Eventually(t, 30*time.Second, "nginx does not listen", func() bool {
		if !nginx.running() {
			t.Fatal("nginx has ended")
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", listen)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}
