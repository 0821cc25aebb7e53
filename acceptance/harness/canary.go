//go:build acceptance

package harness

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
)

// Canaries are the strings that must never show. Every client secret of the
// suites begins with CanarySecret, or is CanaryNumber where it is sent as a
// number. The simulator's tokens are "sim." and 43 characters. JSON, URLs and
// quoted log lines spell all of them the same.
const (
	CanarySecret = "canarysecret"
	CanaryNumber = "7391846057391846"

	// CanaryAudited begins secrets in a place that Vault's own audit shows in
	// clear text: an object's key, a query parameter.
	CanaryAudited = "canaryaudited"
)

var (
	secretPattern  = regexp.MustCompile(CanarySecret)
	numberPattern  = regexp.MustCompile(`7\.?39184605739`) // as a float it has a point after its first digit
	auditedPattern = regexp.MustCompile(CanaryAudited)
	tokenPattern   = regexp.MustCompile(`sim\.[\w-]{8}`)
)

// NewSecret returns a client secret that the search will find.
func NewSecret() string { return CanarySecret + Random(16) }

// FindSecrets returns where client secrets and tokens show in a text, as quotes.
func FindSecrets(text []byte) []string { return find(text, secretPattern, numberPattern, tokenPattern) }

// find returns where any of the patterns shows in a text, as quotes.
func find(text []byte, patterns ...*regexp.Regexp) []string {
	var found []string
	for _, pattern := range patterns {
		if at := pattern.FindIndex(text); at != nil {
			found = append(found, fmt.Sprintf("%s: …%.400q", pattern, text[max(0, at[0]-200):]))
		}
	}
	return found
}

// Transport returns the transport of requests to this server. What they answer
// is searched for secrets.
func (s *Server) Transport() http.RoundTripper { return s.witness }

// Saw searches the output of a program that used this server for secrets and
// tokens. Leaks reports what it finds.
func (s *Server) Saw(what string, text []byte) { s.witness.see(what, text, false) }

// witness searches every answer that a suite gets from one server.
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
	patterns := []*regexp.Regexp{secretPattern, numberPattern, auditedPattern}
	if !tokensAllowed {
		patterns = append(patterns, tokenPattern)
	}
	found := find(text, patterns...)
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

// Leaks searches all that the server has written and answered, and returns what
// it found. Its logs may never hold a token; its data holds everything,
// encrypted. A panic in a log is a finding too.
func (s *Server) Leaks() []string {
	s.witness.mu.Lock()
	found := append([]string(nil), s.witness.found...)
	s.witness.mu.Unlock()

	err := filepath.WalkDir(s.Path("."), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		patterns := []*regexp.Regexp{secretPattern, tokenPattern}
		// The server audits a request before the plugin sees it, and OpenBao shows numbers.
		audit := filepath.Base(path) == "audit.log"
		if !audit {
			patterns = append(patterns, auditedPattern)
		}
		if !audit || !OpenBao {
			patterns = append(patterns, numberPattern)
		}
		for _, quote := range find(text, patterns...) {
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
