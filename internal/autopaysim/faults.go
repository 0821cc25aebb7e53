package autopaysim

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The kinds of a Fault. The first group treats all requests alike and issues no token. The second follows the
// protocol, and changes only answers that carry a token.
const (
	FaultStatus     = "status"      // Status (503) with Body
	FaultBody       = "body"        // 200 with exactly Body
	FaultEmpty      = "empty"       // 200 without a body
	FaultMalformed  = "malformed"   // 200 with incomplete JSON
	FaultRedirect   = "redirect"    // 307 to Location (the token endpoint itself)
	FaultOAuthError = "oauth_error" // 200 with an OAuth error instead of a token
	FaultHTML       = "html"        // 200 with a page for people
	FaultEchoSecret = "echo_secret" // 401 with the request's client_secret in error_description
	FaultHang       = "hang"        // no answer until the client leaves or Close
	FaultClose      = "close"       // the connection is cut without an answer
	FaultRefused    = "refused"     // a dial error before any request; over real HTTP the same as close

	FaultDelay        = "delay"          // the answer after Delay
	FaultOverride     = "override"       // the answer with ExpiresIn, TokenType, Status or Header
	FaultLost         = "lost"           // 504 with a page, as a gateway sends it that does not get the answer in time
	FaultQuoted       = "quoted"         // expires_in in quotes
	FaultSameToken    = "same_token"     // the client's last token again, while it is live
	FaultNoToken      = "no_token"       // no access_token
	FaultWrongType    = "wrong_type"     // a token_type that is not Bearer: TokenType ("mac")
	FaultBadMediaType = "bad_media_type" // Content-Type text/html
	FaultHuge         = "huge"           // 2 MiB of white space, then the answer
	FaultDrip         = "drip"           // one byte at a time, every Delay (1 s)
	FaultCut          = "cut"            // half of the answer, then the connection is cut
)

func kinds() []string {
	return []string{
		FaultStatus, FaultBody, FaultEmpty, FaultMalformed, FaultRedirect, FaultOAuthError, FaultHTML, FaultEchoSecret,
		FaultHang, FaultClose, FaultRefused, FaultDelay, FaultOverride, FaultLost, FaultQuoted, FaultSameToken,
		FaultNoToken, FaultWrongType, FaultBadMediaType, FaultHuge, FaultDrip, FaultCut,
	}
}

// Fault is a fault of the token endpoint. The zero value is none.
type Fault struct {
	Kind      string          `json:"kind,omitempty"`
	Status    int             `json:"status,omitempty"`     // 200 to 599; 0: the kind's own
	Body      string          `json:"body,omitempty"`       // for the first group; "": the kind's own
	Header    http.Header     `json:"header,omitempty"`     // set on the answer, e.g. Retry-After
	Delay     time.Duration   `json:"-"`                    // before any answer; for "drip" between two bytes. In JSON: "delay": "1.5s"
	Location  string          `json:"location,omitempty"`   // of a redirect
	ExpiresIn json.RawMessage `json:"expires_in,omitempty"` // any JSON instead of the number; the token's real lifetime stays the same
	TokenType string          `json:"token_type,omitempty"` // instead of Bearer
	ClientID  string          `json:"client_id,omitempty"`  // affects only this client; "": all
	Times     int             `json:"times,omitempty"`      // affects this many requests; 0: until cleared
}

// plain is a Fault without methods; faultJSON adds a readable delay.
type (
	plain     Fault
	faultJSON struct {
		plain
		Delay string `json:"delay,omitempty"`
	}
)

// MarshalJSON is the inverse of UnmarshalJSON.
func (f Fault) MarshalJSON() ([]byte, error) {
	if f.Delay == 0 {
		return json.Marshal(plain(f))
	}
	return json.Marshal(faultJSON{plain(f), f.Delay.String()})
}

// UnmarshalJSON refuses unknown fields.
func (f *Fault) UnmarshalJSON(b []byte) error {
	var in faultJSON
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		return err
	}
	*f = Fault(in.plain)
	if in.Delay == "" {
		return nil
	}
	var err error
	if f.Delay, err = time.ParseDuration(in.Delay); err != nil {
		return errors.New(`delay: must be a duration such as "1.5s"`)
	}
	return nil
}

// Validate returns an error that names the wrong field.
func (f Fault) Validate() error {
	switch {
	case reflect.ValueOf(f).IsZero():
		return nil
	case !slices.Contains(kinds(), f.Kind):
		return fmt.Errorf("kind: must be one of %s", strings.Join(kinds(), ", "))
	case f.Status != 0 && (f.Status < 200 || f.Status > 599):
		return errors.New("status: must be from 200 to 599")
	case f.Delay < 0:
		return errors.New("delay: must not be negative")
	case f.ExpiresIn != nil && !json.Valid(f.ExpiresIn):
		return errors.New("expires_in: must be JSON")
	case f.Times < 0:
		return errors.New("times: must not be negative")
	}
	return nil
}

// SetFault replaces the active fault; the zero Fault clears it. It panics if f is not valid.
func (s *Server) SetFault(f Fault) {
	if err := f.Validate(); err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// takeFault returns the fault that affects a request of the client, and counts it. The caller holds s.mu.
func (s *Server) takeFault(clientID string) Fault {
	f := s.fault
	if f.ClientID != "" && f.ClientID != clientID {
		return Fault{}
	}
	if f.Times > 0 {
		if s.fault.Times--; s.fault.Times == 0 {
			s.fault = Fault{}
		}
	}
	return f
}

// canned returns the answer of a fault of the first group, which does not depend on the protocol.
func (f Fault) canned(req tokenRequest) (answer reply, ok bool) {
	switch f.Kind {
	case FaultStatus:
		answer = errorReply(http.StatusServiceUnavailable, "temporarily_unavailable", "simulated fault")
	case FaultMalformed:
		answer = reply{http.StatusOK, []byte(`{"access_token":"sim.`)}
	case FaultRedirect:
		answer = reply{http.StatusTemporaryRedirect, nil}
	case FaultOAuthError:
		answer = errorReply(http.StatusOK, "access_denied", "Unauthorized")
	case FaultHTML:
		answer = reply{http.StatusOK, []byte(page)}
	case FaultEchoSecret:
		answer = errorReply(http.StatusUnauthorized, "access_denied", "client_secret "+req.ClientSecret+" is not known")
	case FaultBody, FaultEmpty, FaultHang, FaultClose, FaultRefused:
		answer = reply{http.StatusOK, nil}
	default:
		return reply{}, false
	}
	if f.Body != "" {
		answer.body = []byte(f.Body)
	}
	answer.status = cmp.Or(f.Status, answer.status)
	return answer, true
}

// page is what a proxy, gateway or firewall shows to people.
const page = "<!doctype html><title>Simulated</title><h1>Simulated fault</h1>\n"

// shape changes an answer that carries a token.
func (f Fault) shape(answer tokenAnswer) reply {
	switch f.Kind {
	case FaultNoToken:
		answer.AccessToken = ""
	case FaultWrongType:
		answer.TokenType = "mac"
	}
	if f.Kind == FaultQuoted {
		answer.ExpiresIn = fmt.Appendf(nil, "%q", answer.ExpiresIn)
	}
	if f.ExpiresIn != nil {
		answer.ExpiresIn = f.ExpiresIn
	}
	answer.TokenType = cmp.Or(f.TokenType, answer.TokenType)
	body, _ := json.Marshal(answer) //nolint:gosec // the token is the answer; there is no error, because f is valid
	switch f.Kind {
	case FaultLost:
		return reply{cmp.Or(f.Status, http.StatusGatewayTimeout), []byte(page)}
	case FaultHuge:
		body = append(bytes.Repeat([]byte(" "), 2<<20), body...)
	}
	return reply{cmp.Or(f.Status, http.StatusOK), body}
}

// hold delays a request as f says. It returns false if there must be no answer.
func (s *Server) hold(ctx context.Context, f Fault) bool {
	switch f.Kind {
	case FaultHang:
		return s.wait(ctx, -1)
	case FaultDrip:
		return true
	}
	return s.wait(ctx, f.Delay) && f.Kind != FaultClose && f.Kind != FaultRefused
}

// wait waits for d, or without end if d is negative. It returns false as soon as the client leaves or s is closed.
func (s *Server) wait(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	var over <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-over:
		return true
	case <-ctx.Done():
	case <-s.closed:
	}
	return false
}

// send writes an answer as f says.
func (s *Server) send(w http.ResponseWriter, r *http.Request, answer reply, f Fault) {
	header, body := w.Header(), answer.body
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store") // RFC 6749 §5.1
	switch f.Kind {
	case FaultBadMediaType, FaultHTML, FaultLost:
		header.Set("Content-Type", "text/html")
	case FaultRedirect:
		header.Set("Location", cmp.Or(f.Location, TokenPath))
	case FaultCut:
		header.Set("Content-Length", strconv.Itoa(len(body)))
		body = body[:len(body)/2]
	}
	for key, values := range f.Header {
		header[http.CanonicalHeaderKey(key)] = values
	}
	w.WriteHeader(answer.status)
	if f.Kind == FaultDrip {
		s.drip(w, r, body, cmp.Or(f.Delay, time.Second))
		return
	}
	_, _ = w.Write(body) // on an error the client has left
	if f.Kind == FaultCut {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// drip writes one byte at a time until the client leaves.
func (s *Server) drip(w http.ResponseWriter, r *http.Request, body []byte, pause time.Duration) {
	for i := range body {
		if i > 0 && !s.wait(r.Context(), pause) {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(body[i : i+1]); err != nil {
			panic(http.ErrAbortHandler)
		}
		_ = http.NewResponseController(w).Flush() // the next write shows an error
	}
}
