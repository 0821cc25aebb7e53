package autopaysim

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxBody        = 64 << 10       // bytes of a token request that are read
	maxControlBody = 1 << 20        // bytes of a control request that are read
	keepExpired    = 24 * time.Hour // how long an expired token is still recognised
	maxTokens      = 100_000        // at most remembered; the oldest are forgotten first, live or not
)

// token is an issued token.
type token struct {
	clientID string
	expires  time.Time
	revoked  bool
}

func (t *token) valid(now time.Time) bool { return t != nil && !t.revoked && now.Before(t.expires) }

// left is the token's remaining life in whole seconds, rounded down.
func (t *token) left(now time.Time) int64 { return int64(t.expires.Sub(now) / time.Second) }

type tokenRequest struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Audience     string `json:"audience"`
	GrantType    string `json:"grant_type"`
}

type tokenAnswer struct {
	AccessToken string          `json:"access_token,omitempty"`
	Scope       string          `json:"scope"`
	ExpiresIn   json.RawMessage `json:"expires_in"`
	TokenType   string          `json:"token_type"`
}

type errorAnswer struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// reply is an answer that has not been sent yet.
type reply struct {
	status int
	body   []byte
}

// serveToken answers POST /oauth/token. It decides on arrival: a token counts as issued even if its answer is
// delayed, or the client leaves before it comes.
func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	entry := Entry{Time: s.opts.Now(), Path: TokenPath}
	req, problem := s.readTokenRequest(r)
	s.mu.Lock()
	c := s.clients[req.ClientID]
	f := s.takeFault(req.ClientID)
	s.count(c, func(n *Counters) {
		n.TokenRequests++
		n.InFlight++
		n.MaxInFlight = max(n.MaxInFlight, n.InFlight)
		if f.Kind != "" {
			n.Faulted++
		}
	})
	answer, canned := f.canned(req)
	if !canned {
		answer = s.grant(c, req, problem, f, entry.Time)
	}
	s.mu.Unlock()

	if entry.Fault = f.Kind; c != nil {
		entry.ClientID = c.id
	}
	defer func() {
		s.mu.Lock()
		s.count(c, func(n *Counters) { n.InFlight-- })
		s.mu.Unlock()
		s.record(entry)
	}()
	if !s.hold(r.Context(), f) {
		panic(http.ErrAbortHandler)
	}
	entry.Status = answer.status
	s.send(w, r, answer, f)
}

// readTokenRequest returns as much of the request as can be read, and what is wrong with its form.
func (s *Server) readTokenRequest(r *http.Request) (req tokenRequest, problem string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case media != "application/json":
		problem = "Content-Type must be application/json"
	case err != nil:
		problem = "body must be a JSON object of strings"
	case req.GrantType != "client_credentials":
		problem = "grant_type must be client_credentials"
	case req.Audience != s.opts.Audience:
		problem = "audience must be " + s.opts.Audience
	}
	return req, problem
}

// grant answers as the protocol says; f may change an answer with a token. The caller holds s.mu.
func (s *Server) grant(c *client, req tokenRequest, problem string, f Fault, now time.Time) reply {
	refuse := func(status int, code, text string) reply {
		s.count(c, func(n *Counters) { n.Refused++ })
		return errorReply(status, code, text)
	}
	if problem != "" {
		return refuse(http.StatusBadRequest, "invalid_request", problem)
	}
	if !c.holds(req.ClientSecret) {
		return refuse(http.StatusUnauthorized, "access_denied", "Unauthorized")
	}
	if again := s.tokens[c.last]; f.Kind != FaultSameToken || !again.valid(now) || again.left(now) == 0 {
		if !s.issue(c, now) {
			return refuse(http.StatusForbidden, "access_denied", "API access terminated: too many access tokens")
		}
	}
	answer := tokenAnswer{
		AccessToken: c.last,
		Scope:       s.opts.Scope,
		ExpiresIn:   strconv.AppendInt(nil, s.tokens[c.last].left(now), 10),
		TokenType:   "Bearer",
	}
	return f.shape(answer)
}

// holds reports whether secret is the client's. It takes the same time for an unknown client as for a wrong secret.
func (c *client) holds(secret string) bool {
	want := ""
	if c != nil {
		want = c.secret
	}
	a, b := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && want != ""
}

// issue gives the client a new token, unless it is banned, or this request bans it. The caller holds s.mu.
func (s *Server) issue(c *client, now time.Time) bool {
	if s.opts.BanAfter > 0 {
		c.recent = slices.DeleteFunc(c.recent, func(t time.Time) bool { return now.Sub(t) >= s.opts.BanWindow })
		c.banned = c.banned || len(c.recent) >= s.opts.BanAfter
	}
	if c.banned {
		return false
	}
	if s.opts.BanAfter > 0 {
		c.recent = append(c.recent, now)
	}
	random := make([]byte, 32)
	_, _ = rand.Read(random) // never fails: crypto/rand
	c.last = "sim." + base64.RawURLEncoding.EncodeToString(random)
	s.tokens[c.last] = &token{clientID: c.id, expires: now.Add(s.lifetime)}
	s.order = append(s.order, c.last)
	s.count(c, func(n *Counters) { n.TokensIssued++ })
	for len(s.order) > maxTokens || now.Sub(s.tokens[s.order[0]].expires) > keepExpired {
		delete(s.tokens, s.order[0])
		s.order = s.order[1:]
	}
	return true
}

// Valid reports whether a token was issued here, has not expired and is not revoked.
func (s *Server) Valid(token string) bool {
	now := s.opts.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token].valid(now)
}

// Revoke makes the protected resource refuse a token before it expires.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tokens[token]; t != nil {
		t.revoked = true
	}
}

// serveResource answers GET /v1/whoami.
func (s *Server) serveResource(w http.ResponseWriter, r *http.Request) {
	entry := Entry{Time: s.opts.Now(), Path: ResourcePath, Status: http.StatusUnauthorized}
	scheme, bearer, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	s.mu.Lock()
	t := s.tokens[bearer]
	valid := t.valid(entry.Time) && strings.EqualFold(scheme, "Bearer")
	s.stats.ResourceRequests++
	if !valid {
		s.stats.ResourceRefused++
	}
	if t != nil {
		entry.ClientID = t.clientID
		if !entry.Time.Before(t.expires) {
			s.stats.DeadTokensSeen++
		}
	}
	s.mu.Unlock()

	if valid {
		entry.Status = http.StatusOK
	}
	s.record(entry)
	if !valid {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		writeJSON(w, http.StatusUnauthorized, errorAnswer{Error: "invalid_token"})
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"client_id": t.clientID, "expires_in": t.left(entry.Time)})
}

func errorReply(status int, code, text string) reply {
	body, _ := json.Marshal(errorAnswer{code, text}) // strings always marshal
	return reply{status, body}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client left
}
