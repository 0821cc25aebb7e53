package autopay

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/vault/api"
	"golang.org/x/oauth2"
)

// NewTokenSource is all that most applications need: most Go SDKs accept oauth2.NewClient(ctx, source). It reads the token
// at a path such as autopay/token again after ttl. It does not survive an outage of Vault, and does not handle a 401.
func NewTokenSource(vault *api.Client, path string) oauth2.TokenSource {
	// Not early: before its expiry here, Vault would answer with the same token again. Zero would mean 10 seconds.
	return oauth2.ReuseTokenSourceWithExpiry(nil, reader{vault, path}, time.Nanosecond)
}

type reader struct {
	vault *api.Client // logged in
	path  string
}

// Token implements oauth2.TokenSource.
func (r reader) Token() (*oauth2.Token, error) {
	secret, err := r.vault.Logical().Read(r.path)
	if err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, fmt.Errorf("there is nothing at %s in Vault", r.path)
	}
	token, _ := secret.Data["access_token"].(string)
	ttl, err := secret.Data["ttl"].(json.Number).Int64()
	if err != nil {
		return nil, err
	}
	// One second after ttl, the engine has replaced the token.
	return &oauth2.Token{AccessToken: token, Expiry: time.Now().Add(time.Duration(ttl+1) * time.Second)}, nil
}
