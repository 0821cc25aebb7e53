// Package autopay authorizes requests to the Autopay APIs with the token that Vault holds.
package autopay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/oauth2"
)

// TokenSource is an oauth2.TokenSource. It caches the token for ttl seconds, or until it expires if Vault can't be
// reached. It is safe for concurrent use.
type TokenSource struct {
	Vault      *api.Client // logged in
	Path       string      // autopay/token, or autopay/token/NAME
	RotatePath string      // autopay/rotate for a Client whose policy allows it

	mu          sync.Mutex // guards what follows, and is held during a read
	held        token
	nextRead    time.Time
	err         error     // of the last read
	nextReplace time.Time // until then a 401 is final
}

type token struct {
	AccessToken    string    `json:"access_token"`
	ExpireTime     time.Time `json:"expire_time"`
	RotationPeriod int64     `json:"rotation_period"`
	TTL            int64     `json:"ttl"`
}

// Token implements oauth2.TokenSource.
func (s *TokenSource) Token() (*oauth2.Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().After(s.nextRead) {
		s.read()
	}
	if time.Now().After(s.held.ExpireTime) {
		return nil, s.err
	}
	return &oauth2.Token{AccessToken: s.held.AccessToken, TokenType: "Bearer", Expiry: s.nextRead}, nil
}

// read keeps the current token if it fails.
func (s *TokenSource) read() {
	timeout := 30 * time.Second // without a live token the engine may have to ask Autopay
	if time.Now().Before(s.held.ExpireTime) {
		timeout = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var answer struct{ Data token }
	resp, err := s.Vault.Logical().ReadRawWithContext(ctx, s.Path)
	if err == nil {
		err = resp.DecodeJSON(&answer)
	}
	if err == nil && answer.Data.AccessToken == "" {
		err = fmt.Errorf("no token at %s in Vault", s.Path)
	}
	if s.err = err; err != nil {
		s.nextRead = time.Now().Add(10 * time.Second)
		return
	}
	s.held = answer.Data
	// One second after ttl, the engine has replaced the token.
	s.nextRead = time.Now().Add(time.Duration(s.held.TTL+1) * time.Second)
	if s.held.ExpireTime.Before(s.nextRead) {
		s.held.ExpireTime = s.nextRead // this host's clock is wrong: Vault hands out live tokens only
	}
}
