// An application of the Autopay secrets engine: tokensource.go is what yours takes over, main.go a demonstration.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

const (
	vaultTimeout = 30 * time.Second // for one read and its repeats; above request_timeout, which a first read may take
	pauseFirst   = time.Second      // after a failed read, doubled with each further one
	pauseMax     = 30 * time.Second
	refusedPause = 10 * time.Second // after the API refused a token and Vault had no other
)

// TokenSource holds a token for as long as Vault says, and reads it again when one is asked for after that. One read is
// under way at a time, and nobody waits for it while the token in hand lives. It is safe for concurrent use.
type TokenSource struct {
	vault      *api.Client
	vaultToken string // the file that holds Vault's token, read for each request, for Vault Agent renews it; "": none
	readPath   string
	rotatePath string

	mu           sync.Mutex // guards what follows; not held during a request
	held         token
	nextRead     time.Time // no read before that
	failures     int       // in a row
	err          error     // of the last read
	flight       *flight   // the read under way; nil: none
	refusedUntil time.Time // until then a refusal by the API is taken as it is
}

type token struct {
	value string
	ttl   time.Duration
	until time.Time // when it dies
}

// flight is a read that others wait for.
type flight struct {
	done  chan struct{} // closed at the end
	token string
	err   error
}

// NewTokenSource reads MOUNT/token, or MOUNT/token/NAME. Vault's address, token and TLS settings come from the
// environment (VAULT_ADDR, VAULT_TOKEN and so on), or the token from the file named by VAULT_TOKEN_FILE.
func NewTokenSource(mount, name string) (*TokenSource, error) {
	vault, err := api.NewClient(nil)
	if err != nil {
		return nil, fmt.Errorf("client for Vault: %w", err)
	}
	if name != "" {
		name = "/" + name
	}
	return &TokenSource{
		vault:      vault,
		vaultToken: os.Getenv("VAULT_TOKEN_FILE"),
		readPath:   mount + "/token" + name,
		rotatePath: mount + "/rotate" + name,
	}, nil
}

// Token returns a live token. It waits for Vault only when there is none in hand.
func (s *TokenSource) Token(ctx context.Context) (string, error) {
	s.mu.Lock()
	now, held, err := time.Now(), s.held.value, s.err
	live := now.Before(s.held.until)
	var read *flight
	if !now.Before(s.nextRead) {
		read = s.read(ctx, "")
	}
	s.mu.Unlock()

	switch {
	case live:
		return held, nil
	case read != nil:
		return read.wait(ctx)
	}
	return "", err
}

// Replace returns the token to use instead of one that the API refused. It is the same one if Vault has no other.
func (s *TokenSource) Replace(ctx context.Context, refused string) (string, error) {
	s.mu.Lock()
	if s.held.value != refused || time.Now().Before(s.refusedUntil) {
		defer s.mu.Unlock()
		return s.held.value, nil
	}
	read := s.read(ctx, refused)
	s.mu.Unlock()
	return read.wait(ctx)
}

// read starts a read, or joins the one under way. The caller holds mu.
func (s *TokenSource) read(ctx context.Context, refused string) *flight {
	if s.flight == nil {
		s.flight = &flight{done: make(chan struct{})}
		go s.fly(context.WithoutCancel(ctx), s.flight, refused)
	}
	return s.flight
}

func (f *flight) wait(ctx context.Context) (string, error) {
	select {
	case <-f.done:
		return f.token, f.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// fly makes a read. Its context is not the caller's, who may leave: others wait too.
func (s *TokenSource) fly(ctx context.Context, f *flight, refused string) {
	ctx, cancel := context.WithTimeout(ctx, vaultTimeout)
	defer cancel()
	got, err := s.ask(ctx)
	if err == nil && got.value == refused && s.rotate(ctx) == nil {
		got, err = s.ask(ctx)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.err = err; err != nil {
		s.nextRead = now.Add(min(pauseFirst<<min(s.failures, 10), pauseMax))
		s.failures++
	} else {
		// Another second, and the engine has replaced the token that was due.
		s.held, s.failures, s.nextRead = got, 0, now.Add(got.ttl+time.Second)
		if s.held.until.Before(s.nextRead) {
			s.held.until = s.nextRead // by this host's clock, which is wrong: the engine hands out live tokens only
		}
	}
	if refused != "" && s.held.value == refused {
		s.refusedUntil = now.Add(refusedPause)
	}
	f.token, f.err, s.flight = s.held.value, err, nil
	close(f.done)
}

// ask reads the token from Vault. The client repeats what is answered 5xx or not at all.
func (s *TokenSource) ask(ctx context.Context) (token, error) {
	if err := s.login(); err != nil {
		return token{}, err
	}
	secret, err := s.vault.Logical().ReadWithContext(ctx, s.readPath)
	if err != nil {
		return token{}, explain(s.readPath, err)
	}
	if secret == nil {
		return token{}, fmt.Errorf("there is nothing at %s in Vault: check mount and name", s.readPath)
	}
	value, _ := secret.Data["access_token"].(string)
	number, _ := secret.Data["ttl"].(json.Number)
	expires, _ := secret.Data["expire_time"].(string)
	ttl, ttlErr := number.Int64()
	until, untilErr := time.Parse(time.RFC3339, expires)
	if value == "" || ttlErr != nil || untilErr != nil {
		return token{}, fmt.Errorf("%s in Vault holds no token of Autopay: check mount and name", s.readPath)
	}
	// From here on the monotonic clock counts: a step of the wall clock changes nothing.
	return token{value, time.Duration(ttl) * time.Second, time.Now().Add(time.Until(until))}, nil
}

// rotate asks for a new token. A policy need not allow it, and an engine that has just obtained one keeps it.
func (s *TokenSource) rotate(ctx context.Context) error {
	_, err := s.vault.Logical().WriteWithContext(ctx, s.rotatePath, nil)
	return err
}

func (s *TokenSource) login() error {
	if s.vaultToken == "" {
		return nil
	}
	text, err := os.ReadFile(s.vaultToken)
	if err != nil {
		return fmt.Errorf("token for Vault: %w", err)
	}
	s.vault.SetToken(string(bytes.TrimSpace(text)))
	return nil
}

// explain says on one line what Vault answered, and what to do about it.
func explain(path string, err error) error {
	var answer *api.ResponseError
	if !errors.As(err, &answer) {
		return fmt.Errorf("read of %s: %w", path, err)
	}
	text := strings.Join(strings.Fields(strings.Join(answer.Errors, "; ")), " ")
	if answer.StatusCode == http.StatusForbidden {
		text += fmt.Sprintf(": check that the token for Vault is valid and has a policy with read on %s", path)
	}
	return fmt.Errorf("read of %s: Vault answered %d: %s", path, answer.StatusCode, text)
}

// Transport adds the token to the requests of an http.Client. One that is answered 401 is repeated once, if Vault has
// another token. Use the client for the API alone: the token goes to whatever host it asks.
type Transport struct {
	Source *TokenSource
	Base   http.RoundTripper // nil: http.DefaultTransport
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	used, err := t.Source.Token(req.Context())
	if err != nil {
		if req.Body != nil {
			_ = req.Body.Close() // unread
		}
		return nil, err
	}
	resp, err := t.send(req, used)
	repeatable := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !repeatable {
		return resp, err
	}
	if other, err := t.Source.Replace(req.Context(), used); err == nil && other != used {
		again := req.Clone(req.Context())
		if req.GetBody != nil {
			again.Body, err = req.GetBody()
		}
		if err == nil {
			_ = resp.Body.Close() // of an answer that nobody gets to see
			return t.send(again, other)
		}
	}
	return resp, nil // the 401
}

func (t *Transport) send(req *http.Request, token string) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	req = req.Clone(req.Context()) // a RoundTripper may not change its request
	req.Header.Set("Authorization", "Bearer "+token)
	return base.RoundTrip(req)
}
