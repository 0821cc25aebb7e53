// Package autopaysim is a simulator of Autopay: its token endpoint, one protected resource, a fault for every way
// in which a provider can fail, and a ban for clients that request too many tokens. It runs behind any HTTP server,
// or in-process through [Server.RoundTripper], which works inside a testing/synctest bubble.
package autopaysim

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// TokenPath and ResourcePath are the paths of the token endpoint and the protected resource.
const (
	TokenPath    = "/oauth/token" //nolint:gosec // a path, not a credential
	ResourcePath = "/v1/whoami"
)

// Options configure a Server. The zero value is a server with one demo client and Autopay's own figures.
type Options struct {
	Clients   map[string]string // client ID to secret; nil: {"demo-client": "demo-secret"}
	Audience  string            // that clients must request; "": "https://api.autopay.io"
	Lifetime  time.Duration     // of the tokens, truncated to whole seconds, at least one; 0: 24 h
	Scope     string            // of the tokens; "": "customer_club"
	BanAfter  int               // tokens that a client may get within BanWindow; requesting one more bans it; 0: no ban
	BanWindow time.Duration     // 0: 24 h
	Now       func() time.Time  // nil: time.Now. The delays of faults always use real timers
	MaxLog    int               // newest log entries to keep; 0: 10,000
	OnRequest func(Entry)       // called with each log entry, concurrently; may be nil
}

// Entry is one request to the token endpoint or the protected resource. It holds no secret and no token.
type Entry struct {
	Time     time.Time     `json:"time"`      // of arrival
	ClientID string        `json:"client_id"` // "" unless registered: an unknown ID may be a misplaced secret
	Path     string        `json:"path"`
	Status   int           `json:"status"` // 0: there was no answer
	Duration time.Duration `json:"duration_ns"`
	Fault    string        `json:"fault,omitempty"` // the kind of the fault that affected it
}

// Counters count the token requests of one client or of all.
type Counters struct {
	TokenRequests int `json:"token_requests"` // that arrived, whatever the outcome
	TokensIssued  int `json:"tokens_issued"`
	Refused       int `json:"refused"` // with 400, 401 or 403 by the protocol, not by a fault
	Faulted       int `json:"faulted"` // affected by a fault
	InFlight      int `json:"in_flight"`
	MaxInFlight   int `json:"max_in_flight"`
}

// Stats are the counters of a server since New or Reset.
type Stats struct {
	Counters                             // of all clients, including unknown ones
	BannedClients    []string            `json:"banned_clients"` // sorted
	ResourceRequests int                 `json:"resource_requests"`
	ResourceRefused  int                 `json:"resource_refused"`
	DeadTokensSeen   int                 `json:"dead_tokens_seen"` // uses of a token that was issued here and had expired
	Clients          map[string]Counters `json:"clients"`          // by ID, of every client ever registered
}

// client is a registered client. It is kept after its removal, because of its counters.
type client struct {
	id       string
	secret   string // "": removed
	banned   bool
	recent   []time.Time // when it was issued tokens, within the ban window; empty without a ban
	last     string      // its latest token
	counters Counters
}

// Server is the simulator. It is an http.Handler, starts no goroutine, and is safe for concurrent use.
type Server struct {
	opts      Options // with all defaults set; constant after New
	mux       *http.ServeMux
	closed    chan struct{}
	closeOnce sync.Once

	mu       sync.Mutex // guards what follows
	lifetime time.Duration
	clients  map[string]*client
	tokens   map[string]*token
	order    []string // the keys of tokens, oldest first
	fault    Fault
	log      []Entry
	stats    Stats // without BannedClients and Clients
}

// New returns a server that is ready for requests.
func New(opts Options) *Server {
	if opts.Clients == nil {
		opts.Clients = map[string]string{"demo-client": "demo-secret"}
	}
	if opts.Now == nil {
		opts.Now = time.Now //nolint:forbidigo // the zero value means the real clock
	}
	opts.Audience = cmp.Or(opts.Audience, "https://api.autopay.io")
	opts.Scope = cmp.Or(opts.Scope, "customer_club")
	opts.BanWindow = cmp.Or(opts.BanWindow, 24*time.Hour)
	if opts.MaxLog <= 0 {
		opts.MaxLog = 10_000
	}
	s := &Server{
		opts:    opts,
		mux:     http.NewServeMux(),
		closed:  make(chan struct{}),
		clients: map[string]*client{},
		tokens:  map[string]*token{},
	}
	for id, secret := range opts.Clients {
		s.SetClient(id, secret)
	}
	s.SetLifetime(opts.Lifetime)
	s.mux.HandleFunc("POST "+TokenPath, s.serveToken)
	s.mux.HandleFunc("GET "+ResourcePath, s.serveResource)
	s.routeControl()
	return s
}

// ServeHTTP answers the protocol and the control API. It panics with http.ErrAbortHandler to cut a connection.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Close ends every request that a fault delays, now and later. Call it before you close the HTTP server around it.
func (s *Server) Close() { s.closeOnce.Do(func() { close(s.closed) }) }

// SetClient registers a client or replaces its secret; an empty secret removes it. Its tokens stay valid.
func (s *Server) SetClient(id, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[id]
	if c == nil {
		c = &client{id: id}
		s.clients[id] = c
	}
	c.secret = secret
}

// SetLifetime sets the lifetime of the tokens issued from now on; see Options.Lifetime.
func (s *Server) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = max(cmp.Or(d, 24*time.Hour).Truncate(time.Second), time.Second)
}

// Requests counts the token requests that arrived for a registered client ("": for anybody).
func (s *Server) Requests(clientID string) int { return s.counters(clientID).TokenRequests }

// Issued counts the tokens issued to a client ("": to all).
func (s *Server) Issued(clientID string) int { return s.counters(clientID).TokensIssued }

func (s *Server) counters(clientID string) Counters {
	stats := s.Stats()
	if clientID == "" {
		return stats.Counters
	}
	return stats.Clients[clientID]
}

// Banned reports whether a client ("": any client) has been banned.
func (s *Server) Banned(clientID string) bool {
	banned := s.Stats().BannedClients
	return slices.Contains(banned, clientID) || clientID == "" && len(banned) > 0
}

// Stats returns the current counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.BannedClients = []string{}
	stats.Clients = make(map[string]Counters, len(s.clients))
	for _, id := range slices.Sorted(maps.Keys(s.clients)) {
		stats.Clients[id] = s.clients[id].counters
		if s.clients[id].banned {
			stats.BannedClients = append(stats.BannedClients, id)
		}
	}
	return stats
}

// Log returns the newest requests, in the order in which they ended.
func (s *Server) Log() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Reset empties the counters and the log and lifts every ban. Clients, tokens, lifetime and fault stay.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
	s.stats = Stats{Counters: s.stats.restart()}
	for _, c := range s.clients {
		c.counters, c.banned, c.recent = c.counters.restart(), false, nil
	}
}

// restart returns new counters that keep the requests still in flight.
func (n Counters) restart() Counters { return Counters{InFlight: n.InFlight, MaxInFlight: n.InFlight} }

// count changes the totals and the counters of c (nil: unknown client). The caller holds s.mu.
func (s *Server) count(c *client, change func(*Counters)) {
	change(&s.stats.Counters)
	if c != nil {
		change(&c.counters)
	}
}

// record adds a finished request to the log.
func (s *Server) record(e Entry) {
	e.Duration = s.opts.Now().Sub(e.Time)
	s.mu.Lock()
	s.log = append(s.log, e)
	s.log = s.log[max(0, len(s.log)-s.opts.MaxLog):]
	s.mu.Unlock()
	if s.opts.OnRequest != nil {
		s.opts.OnRequest(e)
	}
}
