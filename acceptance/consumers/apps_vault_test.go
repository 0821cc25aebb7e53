//go:build acceptance

package consumers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
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

// appVault is a proxy between one application and Vault. It counts the requests, and a test can interfere with them.
type appVault struct {
	web   *httptest.Server
	proxy *httputil.ReverseProxy

	mu       sync.Mutex // guards what follows
	reads    []time.Time
	rotates  int
	inFlight int
	most     int
	tokens   []string // of the reads that Vault answered
	meddle   func(http.ResponseWriter, *http.Request) (answered bool)
}

func forApp(t *testing.T, m harness.Mount) *appVault {
	t.Helper()
	vault, err := url.Parse(m.Addr)
	if err != nil {
		t.Fatal(err)
	}
	v := &appVault{proxy: httputil.NewSingleHostReverseProxy(vault)}
	v.proxy.Transport = m.Transport()
	v.proxy.ModifyResponse = v.note
	v.proxy.ErrorLog = log.New(io.Discard, "", 0) // an application may leave
	v.web = httptest.NewServer(v)
	t.Cleanup(v.web.Close)
	return v
}

// ServeHTTP implements http.Handler.
func (v *appVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	switch path := r.URL.Path; {
	case r.Method == http.MethodGet && strings.Contains(path, "/token"):
		v.reads = append(v.reads, time.Now())
	case strings.Contains(path, "/rotate"):
		v.rotates++
	}
	v.inFlight++
	v.most = max(v.most, v.inFlight)
	meddle := v.meddle
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		v.inFlight--
		v.mu.Unlock()
	}()
	if meddle == nil || !meddle(w, r) {
		v.proxy.ServeHTTP(w, r)
	}
}

// note records the token in an answer.
func (v *appVault) note(resp *http.Response) error {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	var answer struct{ Data harness.Token }
	if json.Unmarshal(body, &answer) == nil && answer.Data.AccessToken != "" {
		v.mu.Lock()
		v.tokens = append(v.tokens, answer.Data.AccessToken)
		v.mu.Unlock()
	}
	return nil
}

func (v *appVault) setMeddle(meddle func(http.ResponseWriter, *http.Request) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.meddle = meddle
}

// seen is what an appVault has seen until now.
type seen struct {
	reads, rotates, answered int
	most                     int // requests in flight at once
}

func (v *appVault) seen() seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	return seen{len(v.reads), v.rotates, len(v.tokens), v.most}
}

// held is the token that the application holds, which is the last one that it got.
func (v *appVault) held() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tokens[len(v.tokens)-1]
}

// answered waits until Vault has answered n reads in all, or more.
func (v *appVault) answered(t *testing.T, n int) {
	t.Helper()
	harness.Eventually(t, time.Minute, fmt.Sprintf("no read number %d", n), func() bool { return v.seen().answered >= n })
}

const postBody = "a body that must come again after a 401"

// exampleAPI serves the simulator's API as a POST. It checks the token only if the body is the right one.
type exampleAPI struct {
	web    *httptest.Server
	answer atomic.Pointer[http.HandlerFunc] // instead of the simulator's; nil for that
}

func startAPI(t *testing.T, p *harness.Autopay) *exampleAPI {
	t.Helper()
	api := &exampleAPI{}
	api.web = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || string(body) != postBody || err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if answer := api.answer.Load(); answer != nil {
			(*answer)(w, r)
			return
		}
		r.Method, r.URL.Path = http.MethodGet, autopaysim.ResourcePath
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(api.web.Close)
	return api
}

// exampleApp is the demonstration of one language in examples/. It posts each line of its input to API_URL without
// waiting for the others, and prints the status or the error.
type exampleApp struct {
	needs []string // commands that fail where the example can't run
	run   []string
}

// process is a running exampleApp. It gets calls to make until it is paused.
type process struct {
	*program
	vaultKey string   // the file that holds its token for Vault
	keys     []string // all that was in it

	given int           // calls before the last resume
	stop  chan struct{} // closed to pause
	paced chan int      // calls since the last resume
}

// An application gets this many calls at once, this often.
const (
	workers    = 2
	callsEvery = 200 * time.Millisecond
)

// start runs the application against an API with a Vault token. It uses the credential of a name, which begins with a
// slash, or the default one.
func (app exampleApp) start(
	t *testing.T, m harness.Mount, name string, v *appVault, api *exampleAPI, key string,
) *process {
	t.Helper()
	a := &process{vaultKey: filepath.Join(t.TempDir(), "vault-token")}
	a.giveKey(t, key)
	a.program = startProgram(t, append(os.Environ(),
		"VAULT_ADDR="+v.web.URL, "VAULT_TOKEN_FILE="+a.vaultKey, "API_URL="+api.web.URL,
		"AUTOPAY_PATH="+m.At+"/token"+name, "AUTOPAY_ROTATE_PATH="+m.At+"/rotate"+name,
		"NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1", "PYTHONDONTWRITEBYTECODE=1"), app.run...)
	a.resume()
	return a
}

// resume gives the application calls to make.
func (a *process) resume() {
	a.stop, a.paced = make(chan struct{}), make(chan int, 1)
	go func() {
		given := 0
		for {
			select {
			case <-a.stop:
				a.paced <- given
				return
			case <-time.After(callsEvery):
				// If the application is gone, the lines that it does not print show that.
				_, _ = io.WriteString(a.input, strings.Repeat(postBody+"\n", workers))
				given += workers
			}
		}
	}()
}

// pause stops giving calls, waits until all were made and returns all lines.
func (a *process) pause(t *testing.T) []string {
	t.Helper()
	close(a.stop)
	a.given += <-a.paced
	var lines []string
	harness.Eventually(t, time.Minute, "calls are not made", func() bool {
		lines = a.lines(t)
		return len(lines) >= a.given
	})
	return lines
}

// giveKey puts a token for Vault where the application finds it, as Vault Agent does.
func (a *process) giveKey(t *testing.T, key string) {
	t.Helper()
	a.keys = append(a.keys, key)
	next := a.vaultKey + ".next"
	harness.WriteFile(t, next, []byte(key+"\n"), 0o600)
	if err := os.Rename(next, a.vaultKey); err != nil {
		t.Fatal(err)
	}
}

// lines returns the whole lines that the application has printed.
func (a *process) lines(t *testing.T) []string {
	t.Helper()
	lines := strings.Split(string(harness.ReadFile(t, a.log)), "\n")
	return lines[:len(lines)-1]
}

// calls waits until the application has made n more calls, and returns the lines it printed so far.
func (a *process) calls(t *testing.T, n int) []string {
	t.Helper()
	n += len(a.lines(t))
	var lines []string
	harness.Eventually(t, time.Minute, "the application makes no calls", func() bool {
		if !a.running() {
			t.Fatalf("the application has ended: %q", a.lines(t))
		}
		lines = a.lines(t)
		return len(lines) >= n
	})
	return lines
}

// end closes the application's input, waits until it has ended and returns its lines. There must be one for each call,
// and no Vault token in any.
func (a *process) end(t *testing.T) []string {
	t.Helper()
	a.pause(t)
	_ = a.input.Close()
	if code := a.exitCode(t, time.Minute); code != 0 {
		t.Errorf("the application ends with code %d", code)
	}
	lines := a.lines(t)
	if len(lines) != a.given {
		t.Errorf("%d lines for %d calls", len(lines), a.given)
	}
	for _, key := range a.keys {
		if slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, key) }) {
			t.Error("the application shows its token for Vault")
		}
	}
	return lines
}

// allAre fails the test unless each line, which is the outcome of one call, is want.
func allAre(t *testing.T, lines []string, want string) {
	t.Helper()
	others := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return line == want })
	if len(others) > 0 {
		t.Errorf("%d of %d calls were not answered %s, the first: %s", len(others), len(lines), want, others[0])
	}
}
