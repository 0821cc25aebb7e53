package autopay

import (
	"net/http"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// Client returns a client for the Autopay APIs. After a 401 it repeats the request once if Vault has another token. A
// 403 is not about the token.
func (s *TokenSource) Client() *http.Client {
	return &http.Client{
		Transport: &transport{oauth2.Transport{Source: s}, s},
		// The transport would send the token to wherever a redirect leads.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       time.Minute,
	}
}

type transport struct {
	oauth2.Transport
	source *TokenSource
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.Transport.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || (req.Body != nil && req.GetBody == nil) {
		return resp, err
	}
	refused := strings.TrimPrefix(resp.Request.Header.Get("Authorization"), "Bearer ")
	if !t.source.replace(refused) {
		return resp, nil
	}
	_ = resp.Body.Close()
	again := req.Clone(req.Context())
	if req.GetBody != nil {
		if again.Body, err = req.GetBody(); err != nil {
			return nil, err
		}
	}
	return t.Transport.RoundTrip(again)
}

// replace reports whether there is another token than the one that the API refused.
func (s *TokenSource) replace(refused string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held.AccessToken == refused && time.Now().After(s.nextReplace) {
		s.nextReplace = time.Now().Add(10 * time.Second)
		s.read()
		// If the API refuses a token in its first tenth, it would most likely refuse the next one too.
		if s.held.AccessToken == refused && s.RotatePath != "" && s.held.TTL < s.held.RotationPeriod*9/10 {
			if _, err := s.Vault.Logical().Write(s.RotatePath, nil); err == nil {
				s.read()
			}
		}
	}
	return s.held.AccessToken != refused
}
