package autopaysim

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// clock is a settable time, safe for concurrent use.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// call sends one request in-process and returns the status and the body.
func call(t *testing.T, s *Server, method, path, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://sim"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

// tokenBody is a valid request of demo-client, changed by pairs of field and value.
func tokenBody(t *testing.T, changes ...string) string {
	t.Helper()
	fields := map[string]string{
		"client_id": "demo-client", "client_secret": "demo-secret",
		"audience": "https://api.autopay.io", "grant_type": "client_credentials",
	}
	for pair := range slices.Chunk(changes, 2) {
		fields[pair[0]] = pair[1]
	}
	body, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

type granted struct {
	AccessToken string `json:"access_token"`
	Scope       string `json:"scope"`
	ExpiresIn   int    `json:"expires_in"`
	TokenType   string `json:"token_type"`
}

// obtain requests a token, which must be granted.
func obtain(t *testing.T, s *Server, changes ...string) granted {
	t.Helper()
	status, body := call(t, s, http.MethodPost, TokenPath, tokenBody(t, changes...))
	var g granted
	if err := json.Unmarshal([]byte(body), &g); err != nil || status != http.StatusOK {
		t.Fatalf("token request: %d %s", status, body)
	}
	return g
}

func whoami(t *testing.T, s *Server, token string) (int, string) {
	t.Helper()
	return call(t, s, http.MethodGet, ResourcePath, "", "Authorization", "Bearer "+token)
}

func TestGranted(t *testing.T) {
	t.Parallel()
	for _, media := range []string{"application/json", "application/json; charset=utf-8"} {
		s := New(Options{})
		status, body := call(t, s, http.MethodPost, TokenPath, tokenBody(t), "Content-Type", media)
		var g granted
		if err := json.Unmarshal([]byte(body), &g); err != nil || status != http.StatusOK {
			t.Fatalf("%d %s", status, body)
		}
		if want := (granted{g.AccessToken, "customer_club", 86400, "Bearer"}); g != want || len(g.AccessToken) != len("sim.")+43 {
			t.Errorf("answer %+v", g)
		}
		want := Counters{TokenRequests: 1, TokensIssued: 1, MaxInFlight: 1}
		if stats := s.Stats(); !s.Valid(g.AccessToken) || stats.Counters != want || stats.Clients["demo-client"] != want {
			t.Errorf("valid %v, stats %+v", s.Valid(g.AccessToken), stats)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	const unauthorized = `{"error":"access_denied","error_description":"Unauthorized"}`
	tests := map[string]struct {
		body   string
		media  string // "": application/json
		status int
		answer string // what the answer contains
	}{
		"wrong secret":   {body: tokenBody(t, "client_secret", "wrong"), status: 401, answer: unauthorized},
		"unknown client": {body: tokenBody(t, "client_id", "nobody"), status: 401, answer: unauthorized},
		"removed client": {body: tokenBody(t, "client_id", "gone", "client_secret", ""), status: 401, answer: unauthorized},
		"form":           {body: tokenBody(t), media: "application/x-www-form-urlencoded", status: 400, answer: "Content-Type"},
		"not JSON":       {body: "client_id=x", status: 400, answer: "body"},
		"wrong type":     {body: `{"client_id":1}`, status: 400, answer: "body"},
		"grant":          {body: tokenBody(t, "grant_type", "password"), status: 400, answer: "grant_type"},
		"audience":       {body: tokenBody(t, "audience", "https://x"), status: 400, answer: "audience"},
		"too long":       {body: tokenBody(t, "client_id", strings.Repeat("x", maxBody)), status: 400, answer: "body"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(Options{})
			s.SetClient("gone", "")
			status, body := call(t, s, http.MethodPost, TokenPath, test.body, "Content-Type", cmp.Or(test.media, "application/json"))
			if status != test.status || !strings.Contains(body, test.answer) {
				t.Errorf("%d %s, want %d with %s", status, body, test.status, test.answer)
			}
			if invalid := strings.Contains(body, `"error":"invalid_request"`); invalid != (status == http.StatusBadRequest) {
				t.Errorf("%d %s", status, body)
			}
			if want := (Counters{TokenRequests: 1, Refused: 1, MaxInFlight: 1}); s.Stats().Counters != want {
				t.Errorf("stats %+v", s.Stats())
			}
		})
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	s := New(Options{
		Clients:  map[string]string{"a": "1"},
		Audience: "https://other", Scope: "all", Lifetime: 90*time.Second + 999*time.Millisecond,
	})
	g := obtain(t, s, "client_id", "a", "client_secret", "1", "audience", "https://other")
	if g.Scope != "all" || g.ExpiresIn != 90 {
		t.Errorf("answer %+v", g)
	}
	if status, _ := call(t, s, http.MethodPost, TokenPath, tokenBody(t, "audience", "https://other")); status != http.StatusUnauthorized {
		t.Errorf("the demo client beside named ones: %d, want 401", status)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := New(Options{Lifetime: time.Minute, Now: c.Now})
	token := obtain(t, s).AccessToken

	c.advance(59*time.Second + 500*time.Millisecond)
	if status, body := whoami(t, s, token); status != http.StatusOK || body != `{"client_id":"demo-client","expires_in":0}`+"\n" {
		t.Errorf("in its last second: %d %s", status, body)
	}
	c.advance(500 * time.Millisecond)
	if s.Valid(token) {
		t.Error("valid at its expiry")
	}
	if status, _ := whoami(t, s, token); status != http.StatusUnauthorized {
		t.Errorf("at its expiry: %d, want 401", status)
	}
	if status, _ := whoami(t, s, "sim.never-issued"); status != http.StatusUnauthorized {
		t.Errorf("a foreign token: %d, want 401", status)
	}
	if stats := s.Stats(); stats.ResourceRequests != 3 || stats.ResourceRefused != 2 || stats.DeadTokensSeen != 1 {
		t.Errorf("stats %+v", stats)
	}
}

func TestLifetimeChange(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	for _, test := range []struct {
		set  time.Duration
		want int
	}{{5 * time.Second, 5}, {time.Millisecond, 1}, {0, 86400}} {
		s.SetLifetime(test.set)
		if got := obtain(t, s).ExpiresIn; got != test.want {
			t.Errorf("lifetime %v: expires_in %d, want %d", test.set, got, test.want)
		}
	}
}

func TestMemory(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := New(Options{Lifetime: time.Minute, Now: c.Now, MaxLog: 3})
	old := obtain(t, s).AccessToken
	c.advance(keepExpired)
	obtain(t, s)
	if _, _ = whoami(t, s, old); s.Stats().DeadTokensSeen != 1 {
		t.Error("a token expired for a day is no longer known")
	}
	c.advance(2 * time.Minute)
	obtain(t, s)
	if len(s.tokens) != 2 || len(s.order) != 2 || s.tokens[old] != nil {
		t.Errorf("%d tokens kept, want 2", len(s.tokens))
	}
	for range maxTokens + 5 {
		s.issue(s.clients["demo-client"], c.Now())
	}
	if len(s.tokens) != maxTokens || len(s.order) != maxTokens {
		t.Errorf("%d tokens kept, want %d", len(s.tokens), maxTokens)
	}
	if log := s.Log(); len(log) != 3 || log[2].Time != c.Now() {
		t.Errorf("log %+v, want the newest 3", log)
	}
}

func TestBan(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := New(Options{Clients: map[string]string{"demo-client": "demo-secret", "other": "o"}, BanAfter: 2, BanWindow: time.Hour, Now: c.Now})
	first := obtain(t, s).AccessToken
	c.advance(time.Hour) // the first is out of the window
	obtain(t, s)
	obtain(t, s)
	if s.Banned("") || s.Banned("demo-client") {
		t.Fatal("banned within the limit")
	}
	refused := func() {
		t.Helper()
		status, body := call(t, s, http.MethodPost, TokenPath, tokenBody(t))
		if status != http.StatusForbidden || !strings.Contains(body, "API access terminated: too many access tokens") {
			t.Fatalf("%d %s, want 403", status, body)
		}
	}
	refused()
	c.advance(48 * time.Hour)
	refused()
	if !s.Banned("demo-client") || !s.Banned("") || s.Banned("other") || s.Banned("nobody") {
		t.Error("banned", s.Stats().BannedClients)
	}
	if s.Issued("demo-client") != 3 || s.Requests("demo-client") != 5 || s.Stats().Refused != 2 {
		t.Errorf("stats %+v", s.Stats())
	}
	obtain(t, s, "client_id", "other", "client_secret", "o")
	s.SetClient("demo-client", "rotated")
	if !s.Banned("demo-client") {
		t.Error("a new secret lifted the ban")
	}
	s.Reset()
	obtain(t, s, "client_secret", "rotated")
	if s.Banned("") || s.Valid(first) {
		t.Errorf("after reset: banned %v, first token valid %v", s.Banned(""), s.Valid(first))
	}
}

func TestClients(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	token := obtain(t, s).AccessToken
	s.SetClient("demo-client", "rotated")
	if status, _ := call(t, s, http.MethodPost, TokenPath, tokenBody(t)); status != http.StatusUnauthorized {
		t.Errorf("old secret: %d, want 401", status)
	}
	obtain(t, s, "client_secret", "rotated")
	s.SetClient("demo-client", "")
	if status, _ := call(t, s, http.MethodPost, TokenPath, tokenBody(t, "client_secret", "rotated")); status != http.StatusUnauthorized {
		t.Errorf("removed: %d, want 401", status)
	}
	if !s.Valid(token) || s.Requests("demo-client") != 4 || s.Issued("demo-client") != 2 {
		t.Errorf("valid %v, stats %+v", s.Valid(token), s.Stats())
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	token := obtain(t, s).AccessToken
	s.Revoke("sim.unknown")
	s.Revoke(token)
	status, _ := whoami(t, s, token)
	if stats := s.Stats(); s.Valid(token) || status != http.StatusUnauthorized || stats.DeadTokensSeen != 0 || stats.ResourceRefused != 1 {
		t.Errorf("status %d, stats %+v", status, stats)
	}
}

func TestResourceScheme(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	token := obtain(t, s).AccessToken
	for authorization, want := range map[string]int{
		"Bearer " + token: 200, "bearer " + token: 200, "Basic " + token: 401, token: 401, "Bearer": 401, "": 401,
	} {
		if status, _ := call(t, s, http.MethodGet, ResourcePath, "", "Authorization", authorization); status != want {
			t.Errorf("%.10q: %d, want %d", authorization, status, want)
		}
	}
}

// TestNothingSecret looks for secrets and tokens in everything that the server reveals about its requests.
func TestNothingSecret(t *testing.T) {
	t.Parallel()
	var told []Entry
	s := New(Options{OnRequest: func(e Entry) { told = append(told, e) }})
	token := obtain(t, s).AccessToken
	_, _ = whoami(t, s, token)
	call(t, s, http.MethodPost, TokenPath, tokenBody(t, "client_id", "demo-secret", "client_secret", "demo-client"))
	s.SetFault(Fault{Kind: FaultEchoSecret})
	call(t, s, http.MethodPost, TokenPath, tokenBody(t))
	out, err := json.Marshal([]any{s.Log(), s.Stats()})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out, []byte("demo-secret")) || bytes.Contains(out, []byte("sim.")) {
		t.Errorf("%s", out)
	}
	want := []string{"/oauth/token demo-client 200 ", "/v1/whoami demo-client 200 ", "/oauth/token  401 ", "/oauth/token demo-client 401 echo_secret"}
	var got []string
	for _, e := range told {
		got = append(got, fmt.Sprint(e.Path, " ", e.ClientID, " ", e.Status, " ", e.Fault))
	}
	if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(told, s.Log()) {
		t.Errorf("log %q, want %q", got, want)
	}
}

func TestReset(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	token := obtain(t, s).AccessToken
	_, _ = whoami(t, s, "x")
	s.Reset()
	stats := s.Stats()
	want := Stats{BannedClients: []string{}, Clients: map[string]Counters{"demo-client": {}}}
	if !reflect.DeepEqual(stats, want) || len(s.Log()) != 0 || !s.Valid(token) {
		t.Errorf("stats %+v, log %v, valid %v", stats, s.Log(), s.Valid(token))
	}
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	s := New(Options{BanAfter: 50, MaxLog: 10})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				token := obtain(t, s).AccessToken
				_, _ = whoami(t, s, token)
				s.SetFault(Fault{Kind: FaultOverride, Times: 1})
				s.SetClient("other", "x")
				s.SetLifetime(time.Minute)
				s.Revoke(token)
				if s.Valid(token) || s.Banned("other") || len(s.Log()) > 10 {
					t.Error("a revoked token is valid, or the wrong client banned, or the log too long")
				}
				s.Reset()
			}
		})
	}
	wg.Wait()
	if n := s.Stats().InFlight; n != 0 {
		t.Errorf("%d in flight at the end", n)
	}
}
