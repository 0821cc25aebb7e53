//go:build acceptance

package acceptance

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Canaries are the strings that must stay out of sight. Every client secret of
// the suite starts with canarySecret, or is canaryNumber where it is sent as a
// number; the stand-in's tokens are "sim." and 43 characters. All are spelled
// the same in JSON, in a URL and in a quoted log line.
const (
	canarySecret = "canarysecret"
	canaryNumber = "7391846057391846"

	// canaryAudited is for secrets in a place that Vault's own audit shows in
	// clear: an object's key, a query parameter.
	canaryAudited = "canaryaudited"
)

var (
	// As a float the number has a point after its first digit.
	secretPattern  = regexp.MustCompile(canarySecret + `|7\.?39184605739`)
	auditedPattern = regexp.MustCompile(canaryAudited)
	tokenPattern   = regexp.MustCompile(`sim\.[\w-]{8}`)
)

func newSecret() string { return canarySecret + random(16) }

// canariesIn returns where any of the patterns shows in a text, as quotes.
func canariesIn(text []byte, patterns ...*regexp.Regexp) []string {
	var found []string
	for _, pattern := range patterns {
		if at := pattern.FindIndex(text); at != nil {
			found = append(found, fmt.Sprintf("%s: …%.400q", pattern, text[max(0, at[0]-200):]))
		}
	}
	return found
}

// witness reads every answer that the suite gets from one server.
type witness struct {
	transport *http.Transport

	mu    sync.Mutex // guards found
	found []string
}

func newWitness() *witness {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.MaxIdleConnsPerHost = 256
	return &witness{transport: transport}
}

var tokenPath = regexp.MustCompile(`^/v1/[^/]+/token(/[^/]+)?$`)

// RoundTrip implements http.RoundTripper.
func (w *witness) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := w.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))

	mayHoldToken := req.Method == http.MethodGet && resp.StatusCode == http.StatusOK && tokenPath.MatchString(req.URL.Path)
	w.see(fmt.Sprintf("answer to %s %s", req.Method, req.URL.Path), body, mayHoldToken)
	w.see(fmt.Sprintf("headers of the answer to %s %s", req.Method, req.URL.Path), fmt.Append(nil, resp.Header), false)
	return resp, nil
}

func (w *witness) see(what string, text []byte, tokensAllowed bool) {
	patterns := []*regexp.Regexp{secretPattern, auditedPattern}
	if !tokensAllowed {
		patterns = append(patterns, tokenPattern)
	}
	found := canariesIn(text, patterns...)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, quote := range found {
		w.found = append(w.found, what+" holds "+quote)
	}
}

// about returns what was found in answers that name a mount.
func (w *witness) about(mount string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []string
	for _, leak := range w.found {
		if strings.Contains(leak, mount) {
			found = append(found, leak)
		}
	}
	return found
}

// leaks searches what the server wrote and answered. Its logs hold tokens in
// no circumstances; its data holds everything, encrypted.
func (s *server) leaks() []string {
	s.witness.mu.Lock()
	found := append([]string(nil), s.witness.found...)
	s.witness.mu.Unlock()

	err := filepath.WalkDir(s.path("."), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		patterns := []*regexp.Regexp{secretPattern, tokenPattern}
		// Vault audits a request before the plugin sees it.
		if filepath.Base(path) != "audit.log" {
			patterns = append(patterns, auditedPattern)
		}
		for _, quote := range canariesIn(text, patterns...) {
			found = append(found, path+" holds "+quote)
		}
		if filepath.Ext(path) == ".log" && bytes.Contains(text, []byte("goroutine 1 [")) {
			found = append(found, path+" holds a panic")
		}
		return nil
	})
	if err != nil {
		found = append(found, "search of the server's files: "+err.Error())
	}
	return found
}

// TestCanaryIsHeard shows that the search finds what it looks for, wherever a
// server may leave it.
func TestCanaryIsHeard(t *testing.T) {
	t.Parallel()
	secret, token := newSecret(), "sim."+random(16)
	s := &server{name: "planted", dir: t.TempDir(), witness: newWitness()}
	if err := os.MkdirAll(s.path("data"), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"server.log": secret, "data/raft.db": token, "clean.log": "nothing"} {
		if err := os.WriteFile(s.path(file), []byte(`{"error":"`+text+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.witness.see("error", []byte("refused: "+secret), true)
	s.witness.see("token", []byte(token), true)

	if found := s.leaks(); len(found) != 3 {
		t.Errorf("found %d leaks, want the 3 planted: %q", len(found), found)
	}
}
