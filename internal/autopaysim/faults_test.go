package autopaysim

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// exchange is what a client sees of one token request.
type exchange struct {
	status  int // 0: no answer
	header  http.Header
	body    string
	bodyErr error // while reading the body
}

// request sends a token request to base through transport, without following redirects.
func request(t *testing.T, transport http.RoundTripper, base, body string) exchange {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+TokenPath, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return exchange{}
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	return exchange{resp.StatusCode, resp.Header, string(got), err}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	const good = `"access_token":"sim.`
	tests := map[string]struct {
		fault   Fault
		status  int    // 0: cut
		body    string // what the body contains
		not     string // what it does not contain
		header  string // "Name: value" of the answer
		bodyErr bool
		issued  int
		length  int // minimum bytes of the body
	}{
		"none":            {status: 200, body: good, issued: 1, header: "Content-Type: application/json"},
		"status":          {fault: Fault{Kind: FaultStatus}, status: 503, body: "temporarily_unavailable"},
		"retry later":     {fault: Fault{Kind: FaultStatus, Status: 429, Body: "slow down", Header: http.Header{"retry-after": {"30"}}}, status: 429, body: "slow down", header: "Retry-After: 30"},
		"body":            {fault: Fault{Kind: FaultBody, Body: `{"a":1}`}, status: 200, body: `{"a":1}`},
		"empty":           {fault: Fault{Kind: FaultEmpty}, status: 200, not: "{"},
		"malformed":       {fault: Fault{Kind: FaultMalformed}, status: 200, body: `{"access_token":"sim.`, not: "}"},
		"redirect":        {fault: Fault{Kind: FaultRedirect}, status: 307, header: "Location: /oauth/token"},
		"redirect away":   {fault: Fault{Kind: FaultRedirect, Status: 302, Location: "https://x/"}, status: 302, header: "Location: https://x/"},
		"oauth_error":     {fault: Fault{Kind: FaultOAuthError}, status: 200, body: `"error":"access_denied"`, not: "access_token"},
		"html":            {fault: Fault{Kind: FaultHTML}, status: 200, body: "<!doctype html>", header: "Content-Type: text/html"},
		"echo_secret":     {fault: Fault{Kind: FaultEchoSecret}, status: 401, body: `"error_description":"client_secret demo-secret is not known"`},
		"close":           {fault: Fault{Kind: FaultClose}},
		"refused":         {fault: Fault{Kind: FaultRefused}},
		"delay":           {fault: Fault{Kind: FaultDelay, Delay: time.Millisecond}, status: 200, body: good, issued: 1},
		"override":        {fault: Fault{Kind: FaultOverride, ExpiresIn: json.RawMessage(`"3600"`), Status: 201}, status: 201, body: `"expires_in":"3600"`, issued: 1},
		"lost":            {fault: Fault{Kind: FaultLost}, status: 504, body: "<!doctype html>", header: "Content-Type: text/html", issued: 1},
		"quoted":          {fault: Fault{Kind: FaultQuoted}, status: 200, body: `"expires_in":"86400"`, issued: 1},
		"same_token":      {fault: Fault{Kind: FaultSameToken}, status: 200, body: good, issued: 1},
		"no_token":        {fault: Fault{Kind: FaultNoToken}, status: 200, body: `"expires_in":86400`, not: "access_token", issued: 1},
		"wrong_type":      {fault: Fault{Kind: FaultWrongType}, status: 200, body: `"token_type":"mac"`, issued: 1},
		"named type":      {fault: Fault{Kind: FaultWrongType, TokenType: "bearer"}, status: 200, body: `"token_type":"bearer"`, issued: 1},
		"bad_media_type":  {fault: Fault{Kind: FaultBadMediaType}, status: 200, body: good, header: "Content-Type: text/html", issued: 1},
		"huge":            {fault: Fault{Kind: FaultHuge}, status: 200, body: good, length: 2 << 20, issued: 1},
		"drip":            {fault: Fault{Kind: FaultDrip, Delay: time.Microsecond}, status: 200, body: good, issued: 1},
		"cut":             {fault: Fault{Kind: FaultCut}, status: 200, body: good, not: "}", bodyErr: true, issued: 1},
		"another client":  {fault: Fault{Kind: FaultClose, ClientID: "other"}, status: 200, body: good, issued: 1},
		"this client":     {fault: Fault{Kind: FaultStatus, ClientID: "demo-client"}, status: 503},
		"this is refused": {fault: Fault{Kind: FaultRefused, ClientID: "demo-client"}},
	}
	check := func(t *testing.T, s *Server, got exchange, name string) {
		t.Helper()
		test := tests[name]
		if got.status != test.status {
			t.Fatalf("status %d, want %d: %.200s", got.status, test.status, got.body)
		}
		if !strings.Contains(got.body, test.body) || test.not != "" && strings.Contains(got.body, test.not) || len(got.body) < test.length {
			t.Errorf("body of %d bytes: %.300s", len(got.body), got.body)
		}
		if key, value, _ := strings.Cut(test.header, ": "); got.header.Get(key) != value {
			t.Errorf("header %v, want %s", got.header, test.header)
		}
		if (got.bodyErr != nil) != test.bodyErr {
			t.Errorf("reading the body: %v", got.bodyErr)
		}
		if s.Issued("") != test.issued {
			t.Errorf("%d tokens issued, want %d", s.Issued(""), test.issued)
		}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(Options{})
			s.SetFault(test.fault)
			check(t, s, request(t, s.RoundTripper(), "https://sim", tokenBody(t)), name)

			s = New(Options{})
			s.SetFault(test.fault)
			server := httptest.NewServer(s)
			t.Cleanup(server.Close)
			check(t, s, request(t, server.Client().Transport, server.URL, tokenBody(t)), name)
			if s.Requests("demo-client") != 1 {
				t.Errorf("%d requests arrived, want 1", s.Requests("demo-client"))
			}
		})
	}
}

// TestHangOverTCP checks that Close ends a request whose client does not leave.
func TestHangOverTCP(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	s := New(Options{})
	s.SetFault(Fault{Kind: FaultHang})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(s.Close)
	body, ended := tokenBody(t), make(chan exchange)
	go func() { ended <- request(t, server.Client().Transport, server.URL, body) }()
	<-arrived
	s.Close()
	if got := <-ended; got.status != 0 {
		t.Errorf("status %d after Close, want a cut connection", got.status)
	}
}

func TestFaultTimes(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	s.SetFault(Fault{Kind: FaultStatus, Times: 2, ClientID: "demo-client"})
	var got []int
	for _, id := range []string{"demo-client", "nobody", "demo-client", "demo-client"} {
		status, _ := call(t, s, http.MethodPost, TokenPath, tokenBody(t, "client_id", id))
		got = append(got, status)
	}
	if want := [...]int{503, 401, 503, 200}; [4]int(got) != want {
		t.Errorf("statuses %v, want %v", got, want)
	}
	if n := s.Stats().Faulted; n != 2 {
		t.Errorf("%d faulted, want 2", n)
	}
	s.SetFault(Fault{Kind: FaultStatus})
	s.SetFault(Fault{})
	obtain(t, s)
}

func TestSameToken(t *testing.T) {
	t.Parallel()
	c := newClock()
	s := New(Options{Lifetime: time.Minute, BanAfter: 2, Now: c.Now})
	s.SetFault(Fault{Kind: FaultSameToken})
	first := obtain(t, s)
	c.advance(45 * time.Second)
	if again := obtain(t, s); again.AccessToken != first.AccessToken || again.ExpiresIn != 15 || s.Issued("") != 1 {
		t.Errorf("%+v then %+v", first, again)
	}
	c.advance(14*time.Second + time.Millisecond)
	if next := obtain(t, s); next.AccessToken == first.AccessToken || next.ExpiresIn != 60 {
		t.Errorf("in its last second the old token came again: %+v", next)
	}
	s.Revoke(s.clients["demo-client"].last)
	if status, _ := call(t, s, http.MethodPost, TokenPath, tokenBody(t)); status != http.StatusForbidden {
		t.Errorf("a revoked token is replaced, which is one too many: %d, want 403", status)
	}
}

func TestFaultValidate(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fault Fault
		field string // "": valid
	}{
		"zero":       {},
		"no kind":    {Fault{Status: 500}, "kind"},
		"bad kind":   {Fault{Kind: "nap"}, "kind"},
		"status":     {Fault{Kind: FaultStatus, Status: 100}, "status"},
		"delay":      {Fault{Kind: FaultDelay, Delay: -1}, "delay"},
		"expires_in": {Fault{Kind: FaultOverride, ExpiresIn: json.RawMessage("{")}, "expires_in"},
		"times":      {Fault{Kind: FaultStatus, Times: -1}, "times"},
	}
	for _, kind := range kinds() {
		tests["kind "+kind] = struct {
			fault Fault
			field string
		}{fault: Fault{Kind: kind}}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer func() {
				if (recover() != nil) != (test.field != "") {
					t.Error("SetFault and Validate disagree")
				}
			}()
			err := test.fault.Validate()
			if (err != nil) != (test.field != "") || err != nil && !strings.HasPrefix(err.Error(), test.field+": ") {
				t.Errorf("error %v, want one about %q", err, test.field)
			}
			New(Options{}).SetFault(test.fault)
		})
	}
}

// TestDocs checks that docs/autopaysim.md lists every kind of fault.
func TestDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/autopaysim.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds() {
		if !strings.Contains(string(page), "| `"+kind+"` |") {
			t.Errorf("docs/autopaysim.md has no row for %s", kind)
		}
	}
}
