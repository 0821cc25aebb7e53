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
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// sidecarAPI is the API behind the sidecar. It notes the tokens it sees, and is
// slow when asked to, so that requests are under way whenever nginx reloads.
type sidecarAPI struct {
	p *harness.Autopay

	mu    sync.Mutex // guards first
	first map[string]time.Time
}

// ServeHTTP implements http.Handler.
func (a *sidecarAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	a.mu.Lock()
	if _, seen := a.first[token]; !seen {
		a.first[token] = time.Now()
	}
	a.mu.Unlock()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	if r.URL.Query().Has("slow") {
		time.Sleep(2 * time.Second)
	}
	r.Method = http.MethodGet // the simulator's API knows no other
	a.p.ServeHTTP(w, r)
}

// tokens returns when each token was first seen.
func (a *sidecarAPI) tokens() map[string]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.first)
}

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

// load counts the requests of an application and those that failed.
type load struct {
	mu       sync.Mutex // guards what follows
	requests int
	failures []error
}

// send makes one request as an application that knows nothing of tokens. Its
// body can't be sent again, so that Go's client hides no failure by a retry.
func (l *load) send(t *testing.T, client *http.Client, url string) {
	t.Helper()
	body := io.NopCloser(strings.NewReader("one payment"))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("Authorization", "Bearer of-the-application")
	err = func() error {
		resp, err := client.Do(req)
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
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	if err != nil {
		l.failures = append(l.failures, err)
	}
}

// TestExampleSidecar runs Vault Agent and nginx with the files of
// examples/sidecar under load, while the token is replaced five times.
func TestExampleSidecar(t *testing.T) {
	t.Parallel()
	needs(t, "nginx")
	const rotations, workers, period = 5, 4, 6 * time.Second
	m, p := exampleVault(t), harness.StartAutopayTLS(t)
	p.SetLifetime(20 * time.Second)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config("rotation_period", int(period.Seconds()), "ca_cert", p.CACert()))

	api := &sidecarAPI{p: p, first: map[string]time.Time{}}
	web := httptest.NewTLSServer(api) // with the certificate of the simulator, which is for example.com
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
	l, client := &load{}, &http.Client{Timeout: 30 * time.Second}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for worker := range workers {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				if worker == 0 {
					l.send(t, client, url+"?slow")
				} else {
					l.send(t, client, url)
				}
			}
		})
	}
	began := time.Now()
	harness.Eventually(t, 2*time.Minute, "the tokens of the rotations are not all used", func() bool {
		return len(api.tokens()) > rotations
	})
	took := time.Since(began)
	close(stop)
	running.Wait()

	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(l.failures), l.requests, l.failures[0])
	}
	stats := p.Stats()
	if stats.ResourceRefused != 0 || stats.DeadTokensSeen != 0 || stats.ResourceRequests != l.requests {
		t.Errorf("the API got %d requests for %d, refused %d, saw %d dead tokens",
			stats.ResourceRequests, l.requests, stats.ResourceRefused, stats.DeadTokensSeen)
	}
	if l.requests < 1000 {
		t.Errorf("only %d requests", l.requests)
	}
	answered := issues(p, cred.ID)
	seen := api.tokens()
	late := time.Duration(0)
	for i, at := range sortedTimes(seen)[1:] {
		late = max(late, at.Sub(answered[i+1]))
	}
	t.Logf("FIGURE: sidecar, %d requests in %v over %d rotations: %d failed; the API refused %d and saw %d dead tokens; "+
		"a new token was first used at most %v after Autopay issued it",
		l.requests, took.Round(time.Second), len(seen)-1, len(l.failures), stats.ResourceRefused, stats.DeadTokensSeen, late.Round(100*time.Millisecond))

	// A server whose certificate nginx can't verify must not get the token.
	other := t.TempDir()
	for file, content := range map[string]string{"ca.crt": harness.OtherCert(t), "authorization.conf": string(harness.ReadFile(t, header))} {
		harness.WriteFile(t, filepath.Join(other, file), content, 0o600)
	}
	strict := freeAddress(t)
	startNginx(t, harness.WriteFile(t, filepath.Join(other, "nginx.conf"), nginxConf(strict, other, filepath.Join(other, "ca.crt")), 0o600), strict)
	refused := &load{}
	refused.send(t, client, "http://"+strict+autopaysim.ResourcePath)
	if len(refused.failures) != 1 || !strings.HasPrefix(refused.failures[0].Error(), "502") || p.Stats().ResourceRequests != l.requests {
		t.Errorf("a server with a foreign certificate: %v, want 502 and no request", refused.failures)
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

// sortedTimes returns the times of a map in order.
func sortedTimes(of map[string]time.Time) []time.Time {
	return slices.SortedFunc(maps.Values(of), time.Time.Compare)
}
