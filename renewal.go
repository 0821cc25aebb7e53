package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
)

// verifySpacing is the time after a failed verification in which the same one is
// not sent again, unless Autopay asks for more.
const verifySpacing = 5 * time.Second

// newCredential returns the credential of a name, with nothing loaded yet.
func newCredential(n *node, name string) *credential {
	c := &credential{node: n, name: name, slot: make(chan struct{}, 1)}
	c.counters.Store(new(counters))
	return c
}

// The methods below are the jobs that change a credential. Their callers hold
// its slot.

// renewDue obtains a new token if one is due, and stores what could not be
// stored before.
func (c *credential) renewDue(ctx context.Context) error {
	s, err := c.current(ctx)
	if err != nil || s.config == nil {
		return err
	}
	now := c.node.now()
	if s.live(now) && !s.due(now) {
		defer c.arm()
		if s.unsaved && c.node.mayWrite() {
			return c.saveAgain(ctx, s)
		}
		return nil
	}
	if f := s.blocked(now); f != nil && c.node.mayWrite() {
		c.arm()
		return f
	}
	return c.obtain(ctx, s)
}

// rotate replaces the token now, unless it is so young that others who saw the
// same refusal must have asked already.
func (c *credential) rotate(ctx context.Context) (warning string, err error) {
	s, err := c.current(ctx)
	if err != nil || s.config == nil {
		return "", err
	}
	now := c.node.now()
	if s.live(now) && now.Sub(s.entry.obtained()) < youngToken {
		return "this token is younger than 60 s and was kept", nil
	}
	// Autopay may answer with the same token again, which is then as old as before.
	if s.live(now) && s.entry.Failure == nil && now.Sub(s.entry.lastRequest()).Abs() < youngToken {
		return "Autopay was asked for a token less than 60 s ago, and this one was kept", nil
	}
	if f := s.entry.Failure; f != nil {
		if f = f.untilRotate(); before(now, f.NextAttempt) {
			return "", f
		}
	}
	if err := c.obtain(ctx, s); err != nil {
		return "", err
	}
	if c.snap.Load().entry.AccessToken == s.entry.AccessToken {
		return "Autopay answered with the same token again", nil
	}
	return "", nil
}

// obtain asks Autopay for a token and publishes what came of it.
func (c *credential) obtain(ctx context.Context, s *snapshot) error {
	entry, err := c.ask(ctx, s, s.config)
	now := c.node.now()
	var (
		x       *exchangeError
		storage *storageError
		limited *failedAttempt
	)
	switch {
	case err == nil:
		c.save(ctx, s, s.config, entry)
	case errors.As(err, &x):
		entry = entry.withFailedExchange(s.config.Generation, x, s.config.TokenRequestLimit, now)
		c.save(ctx, s, s.config, entry)
		err = entry.Failure
	case errors.As(err, &storage):
		// Not written now, because writing has just failed. A later refresh does
		// it: storage may have the request that was not sent.
		next := newSnapshot(s.config, s.entry.withStorageFailure(s.config.Generation, cleanText(err.Error(), s.config.ClientSecret), now), now)
		next.unsaved = true
		c.publish(s, next)
		err = next.entry.Failure
	case errors.As(err, &limited):
		c.log().Warn("token_request_limit allows no request now", "state", s.state(now), "next_attempt", formatTime(limited.NextAttempt))
		next := newSnapshot(s.config, s.entry, now) // the wall clock may have been set since s was made
		next.unsaved = s.unsaved
		c.publish(s, next)
	}
	return err
}

// ask makes one request to Autopay for a token of config's settings, if this
// node may write (rule 10) and the ledger allows it (rule 8). The request is
// stored in the ledger before it is sent. What comes back is for the caller to
// store: the entry holds the ledger whenever the request was sent.
//
// The error is an *exchangeError if the request brought no token, and a
// *storageError, a *failedAttempt (the limit), logical.ErrReadOnly or errStopped
// if it was not sent. errStopped can also follow a request that was sent; then
// the ledger keeps it.
func (c *credential) ask(ctx context.Context, s *snapshot, config *configEntry) (tokenEntry, error) {
	sent := c.node.now()
	if !c.node.mayWrite() {
		return s.entry, logical.ErrReadOnly
	}
	// Not s.limited: config may bring another limit.
	if until := anchored(sent, s.entry.limitedUntil(config.TokenRequestLimit)); before(sent, until) {
		c.counters.Load().requests[requestLimited].Add(1)
		return s.entry, s.entry.limitedAttempt(config.TokenRequestLimit, until)
	}
	entry := s.entry.withRequest(sent)
	if err := c.node.putToken(ctx, c.name, entry); err != nil {
		if ctx.Err() != nil {
			err = errStopped
		}
		return s.entry, err
	}
	c.log().Debug("asking for a token")
	begun := c.node.now()
	answer, x := c.node.client.exchange(ctx, config.tokenRequest())
	if ctx.Err() != nil {
		return entry, errStopped
	}
	now := c.node.now()
	withToken := entry
	if x == nil {
		// Readers judge by the same predicate: whoever asks again finds a token that
		// can be had, or a failure with its backoff.
		if withToken = entry.withToken(config.Generation, answer, sent, now); !withToken.live(now) {
			x = entry.forGeneration(config.Generation).expiredOnArrival(answer, now)
		}
	}
	c.counters.Load().countExchange(x, now.Sub(begun))
	switch {
	case x == nil:
		return withToken, nil
	case x.noToken:
		return entry.withoutLastRequest(), x
	}
	return entry, x
}

// forConfigWrite is current, except that a credential without a usable config
// has the ledger of what was there before: a creation that failed, or a config
// that is damaged.
func (c *credential) forConfigWrite(ctx context.Context) (*snapshot, error) {
	s, err := c.current(ctx)
	if err != nil || s.config != nil {
		return s, err
	}
	left, err := c.node.getToken(ctx, c.name)
	if err != nil {
		return nil, err
	}
	return &snapshot{storageVersion: s.storageVersion, entry: left.forGeneration("")}, nil
}

// configure stores next as the settings, without asking Autopay.
func (c *credential) configure(ctx context.Context, s *snapshot, next *configEntry) error {
	if s.config != nil && *next == *s.config {
		return nil
	}
	if err := c.node.putConfig(ctx, c.name, next); err != nil {
		c.stale() // the write may have succeeded despite the error
		return err
	}
	now := c.node.now()
	changed := newSnapshot(next, s.entry.withShorterWait(now), now)
	changed.unsaved = s.unsaved
	c.publish(s, changed)
	c.configured("verified", false)
	return nil
}

// configureVerified stores next as the settings. If they change what a token is
// issued for, it first requests one with them, which becomes the token; if that
// fails, settings and token stay as they were.
func (c *credential) configureVerified(ctx context.Context, s *snapshot, next *configEntry) error {
	if s.config != nil && next.Generation == s.config.Generation {
		return c.configure(ctx, s, next)
	}
	entry, err := c.verify(ctx, s, next)
	if err != nil {
		return err
	}
	if err := c.node.putConfig(ctx, c.name, next); err != nil {
		old := s.entry
		old.Requests = entry.Requests // the request was sent, and counts
		c.save(ctx, s, s.config, old)
		c.stale() // the write of the settings may have succeeded despite the error
		return err
	}
	c.save(ctx, s, next, entry)
	c.configured("verified", true)
	return nil
}

func (c *credential) configured(args ...any) {
	c.node.send(eventConfigWrite, c.name)
	c.log().Info("credential configured", args...)
}

// verify requests a token with settings that are not stored yet. Vault's clients
// repeat a write that was answered with a 5xx: the same one right after a failed
// verification is answered as before, without a request.
func (c *credential) verify(ctx context.Context, s *snapshot, next *configEntry) (tokenEntry, error) {
	settings := sha256.Sum256(fmt.Append(nil, next.tokenRequest()))
	if last := c.unverified; last != nil && last.settings == settings && last.until.Sub(c.node.now()) > 0 {
		return s.entry, last
	}
	entry, err := c.ask(ctx, s, next)
	var (
		x       *exchangeError
		storage *storageError
	)
	switch {
	case err == nil:
		return entry, nil
	case errors.As(err, &storage):
		c.stale() // the write of the ledger may have succeeded despite the error
		return entry, err
	case !errors.As(err, &x):
		return entry, err
	}
	c.save(ctx, s, s.config, entry) // config and token stay as they were, the ledger does not
	c.unverified = &unverifiedError{x, settings, c.node.now().Add(max(verifySpacing, x.retryAfter))}
	return entry, c.unverified
}

// remove deletes the credential, its token and its ledger, also those that a failed
// creation has left. The config goes last: as long as it is there, a delete that
// failed can be repeated.
func (c *credential) remove(ctx context.Context) error {
	s, err := c.current(ctx)
	if err != nil {
		return err
	}
	for _, key := range []string{tokenPrefix + c.name, configPrefix + c.name} {
		if err := c.node.deleteKey(ctx, key); err != nil {
			c.stale() // the delete may have succeeded despite the error
			return err
		}
	}
	c.publish(s, newSnapshot(nil, tokenEntry{}, c.node.now()))
	if notConfigured(c.unusable(s)) {
		return nil
	}
	c.counters.Store(new(counters))
	c.node.send(eventConfigDelete, c.name)
	c.log().Info("credential deleted")
	return nil
}

// save stores an entry and publishes it. An entry that can't be stored is served
// from memory until a later refresh stores it (rule 9).
func (c *credential) save(ctx context.Context, s *snapshot, config *configEntry, entry tokenEntry) {
	var err error
	if config == nil && len(entry.Requests) == 0 {
		err = c.node.deleteKey(ctx, tokenPrefix+c.name) // nothing to keep of a refused creation
	} else {
		err = c.node.putToken(ctx, c.name, entry)
	}
	readOnly := errors.Is(err, logical.ErrReadOnly)
	if err != nil && ctx.Err() == nil {
		c.log().Error("the token entry can't be stored, it is kept in memory", "error", err)
	}
	next := newSnapshot(config, entry, c.node.now())
	next.unsaved = err != nil && !readOnly
	c.publish(s, next)
	if config == nil || readOnly {
		c.stale() // storage is authoritative
	}
}

// saveAgain stores an entry that could not be stored before.
func (c *credential) saveAgain(ctx context.Context, s *snapshot) error {
	if err := c.node.putToken(ctx, c.name, s.entry); err != nil {
		c.log().Debug("the token entry still can't be stored", "error", err)
		return err
	}
	saved := *s
	saved.unsaved = false
	c.replace(s, &saved)
	c.log().Info("the token entry is stored again")
	return nil
}
