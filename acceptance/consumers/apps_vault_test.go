//go:build acceptance

package consumers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
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

// post serves the API as a POST. It checks the token only if the body is the right one.
func post(t *testing.T, p *harness.Autopay) (address string) {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || string(body) != postBody || err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.Method, r.URL.Path = http.MethodGet, autopaysim.ResourcePath
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(api.Close)
	return api.URL
}

// exampleApp is one of examples/.
type exampleApp struct {
	needs   []string   // programs
	check   [][]string // commands that must succeed
	run     []string
	waits   bool   // makes no calls while it reads the token, because it does one thing at a time
	spied   string // a program whose arguments, which all users of a machine can see, must hold no token
	workers int
}

// available skips the test if a program is missing. In CI it fails the test.
func (app exampleApp) available(t *testing.T) {
	t.Helper()
	for _, program := range app.needs {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		message := fmt.Sprintf("%s is NOT RUN: %s is missing", t.Name(), program)
		if os.Getenv("CI") != "" {
			t.Fatal(message)
		}
		fmt.Fprintf(os.Stderr, "\n*** %s\n\n", message)
		t.Skip(message)
	}
}

// process is a running exampleApp.
type process struct {
	cmd      *exec.Cmd
	out      string   // the file that it prints to
	vaultKey string   // the file that holds its token for Vault
	keys     []string // all that was in it
	args     string   // the file with the arguments of the program that is spied on; "": none is
	ended    chan error
}

// start runs the application against an API, with a token for Vault.
func (app exampleApp) start(t *testing.T, m harness.Mount, v *appVault, api, key string, env ...string) *process {
	t.Helper()
	dir := t.TempDir()
	a := &process{out: filepath.Join(dir, "out"), vaultKey: filepath.Join(dir, "vault-token"), ended: make(chan error, 1)}
	a.giveKey(t, key)
	out, err := os.Create(a.out)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()

	a.cmd = exec.CommandContext(context.Background(), app.run[0], app.run[1:]...)
	a.cmd.Env = append(os.Environ(),
		"VAULT_ADDR="+v.web.URL, "VAULT_TOKEN_FILE="+a.vaultKey, "AUTOPAY_MOUNT="+m.At, "API_URL="+api,
		"NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1", "PYTHONDONTWRITEBYTECODE=1")
	a.cmd.Env = append(a.cmd.Env, env...)
	if app.spied != "" {
		a.spy(t, app.spied)
	}
	a.cmd.Stdout, a.cmd.Stderr = out, out
	harness.DieWithTests(a.cmd)
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { a.ended <- a.cmd.Wait() }()
	t.Cleanup(func() { _ = a.cmd.Process.Kill() }) // if it still runs
	return a
}

// spy has the arguments of a program that the application runs written to a file.
func (a *process) spy(t *testing.T, program string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a.args = filepath.Join(dir, "args")
	script := fmt.Sprintf("#!/bin/sh\nprintf '%%s ' \"$@\" >>'%s'\nexec '%s' \"$@\"\n", a.args, path)
	harness.WriteFile(t, filepath.Join(dir, program), []byte(script), 0o700)
	a.cmd.Env = append(a.cmd.Env, "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
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
	text := harness.ReadFile(t, a.out)
	lines := strings.Split(string(text), "\n")
	return lines[:len(lines)-1]
}

// calls waits until the application has made n more calls, and returns the lines it printed so far.
func (a *process) calls(t *testing.T, n int) []string {
	t.Helper()
	n += len(a.lines(t))
	var lines []string
	harness.Eventually(t, time.Minute, "the application makes no calls", func() bool {
		lines = a.lines(t)
		return len(lines) >= n
	})
	return lines
}

// end waits until the application has ended and returns its lines, in which no token may show. If stop is set it ends the
// application.
func (a *process) end(t *testing.T, stop bool) []string {
	t.Helper()
	if stop {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case err := <-a.ended:
		if err != nil {
			t.Errorf("the application: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the application does not end")
	}
	lines := a.lines(t)
	text := []byte(strings.Join(lines, "\n"))
	if a.args != "" {
		args := harness.ReadFile(t, a.args)
		text = append(text, args...)
	}
	for _, quote := range harness.FindSecrets(text) {
		t.Errorf("the application shows %s", quote)
	}
	for _, key := range a.keys {
		if bytes.Contains(text, []byte(key)) {
			t.Error("the application shows its token for Vault")
		}
	}
	return lines
}

// allAre fails the test unless each line, which is the outcome of one call, holds all of wants.
func allAre(t *testing.T, lines []string, wants ...string) {
	t.Helper()
	others := slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return !slices.ContainsFunc(wants, func(want string) bool { return !strings.Contains(line, want) })
	})
	if len(others) > 0 {
		t.Errorf("%d of %d calls without %q, the first: %s", len(others), len(lines), wants, others[0])
	}
}
