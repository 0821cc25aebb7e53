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

// # The jobs
//
// Four jobs change a credential: renew, rotate, configure and remove. Each runs under
// the credential's lock (exclusively) and begins with the snapshot that is current then,
// because the world may have changed while it waited: another job may have obtained the
// token already.
//
// A request to Autopay always takes the same way. ask stores the ledger with the
// request in it, sends it, and returns an entry with the token, or the error. Its
// caller makes that the stored entry (save) and publishes it, which sets the timer. If
// the entry can't be stored, it is served from memory and stored by a later refresh
// (rule 9); if the ledger can't be stored, no request is sent (rule 8).
//
// Whoever calls one of the methods below holds the credential's lock.

// renew obtains a new token if one is due, and stores what could not be
// stored before.
func (c *credential) renew(ctx context.Context) error {
	s, err := c.current(ctx)
	if err != nil || s.config == nil {
		return err
	}
	now := c.env.now()
	if s.live(now) && !s.due(now) {
		if s.unsaved && c.env.mayWrite() {
			c.saveAgain(ctx, s)
		}
		return nil
	}
	if f := s.blocked(now); f != nil && c.env.mayWrite() {
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
	now := c.env.now()
	if s.live(now) && now.Sub(s.entry.obtained()) < youngToken {
		return "the token is less than 60 seconds old and was not replaced", nil
	}
	// Autopay may answer with the same token again, which is then as old as before. After
	// the wall clock was set back, the last request seems to lie ahead.
	if s.live(now) && s.entry.Failure == nil && now.Sub(s.entry.lastRequest()).Abs() < youngToken {
		return "a token was requested less than 60 seconds ago; the current token was not replaced", nil
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
		return "Autopay returned the same token; it was not replaced", nil
	}
	return "", nil
}

// obtain asks Autopay for a token and publishes what came of it.
func (c *credential) obtain(ctx context.Context, s *snapshot) error {
	entry, err := c.ask(ctx, s, s.config)
	now := c.env.now()
	switch e := err.(type) { //nolint:errorlint // ask wraps no error
	case nil:
		c.save(ctx, s, s.config, entry)
	case *exchangeError:
		entry = entry.withFailedExchange(s.config.Generation, e, s.config.TokenRequestLimit, now)
		c.save(ctx, s, s.config, entry)
		return entry.Failure
	case *storageError:
		// Not written now, because writing has just failed. A later refresh does it:
		// storage may have the request that was not sent.
		x := &exchangeError{kind: noStorage, noToken: true, text: cleanText(e.Error(), s.config.ClientSecret)}
		entry = s.entry.withFailedExchange(s.config.Generation, x, 0, now)
		c.publish(s, s.config, entry, true)
		return entry.Failure
	case *failedAttempt:
		c.log().Warn("token_request_limit allows no request now",
			"state", s.state(now), "next_attempt", formatTime(e.NextAttempt))
		c.publish(s, s.config, s.entry, s.unsaved) // the wall clock may have been set since s was made
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
	sent := c.env.now()
	if !c.env.mayWrite() {
		return s.entry, logical.ErrReadOnly
	}
	// Not s.limited: config may bring another limit.
	if f := newSnapshot(config, s.entry, sent).limited(sent); f != nil {
		c.counters.Load().requests[requestLimited].Add(1)
		return s.entry, f
	}
	entry := s.entry.withRequest(sent)
	if err := c.env.put(ctx, tokenPrefix+c.name, entry); err != nil {
		if ctx.Err() != nil {
			err = errStopped
		}
		return s.entry, err
	}
	c.log().Debug("requesting a token")
	begun := c.env.now()
	answer, x := c.env.client.exchange(ctx, config.tokenRequest())
	if ctx.Err() != nil {
		return entry, errStopped
	}
	now := c.env.now()
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

// configure stores next as the settings. If verify is set and they change what a
// token is issued for, it first requests one with them, which becomes the token; if
// that fails, settings and token stay as they were.
func (c *credential) configure(ctx context.Context, s *snapshot, next *configEntry, verify bool) (err error) {
	if s.config != nil && *next == *s.config {
		return nil
	}
	entry := s.entry.withShorterWait(c.env.now())
	if verify = verify && (s.config == nil || next.Generation != s.config.Generation); verify {
		if entry, err = c.verify(ctx, s, next); err != nil {
			return err
		}
	}
	if err := c.env.put(ctx, configPrefix+c.name, next); err != nil {
		if verify {
			old := s.entry
			old.Requests = entry.Requests // the request was sent, and counts
			c.save(ctx, s, s.config, old)
		}
		c.stale() // the write of the settings may have succeeded despite the error
		return err
	}
	if verify {
		c.save(ctx, s, next, entry)
	} else {
		c.publish(s, next, entry, s.unsaved)
	}
	c.env.send("autopay/config-write", configPrefix, true, c.name)
	c.log().Info("credential configured", "verified", verify)
	return nil
}

// verify requests a token with settings that are not stored yet, so that a wrong
// secret never replaces a right one. Vault's clients repeat a write that was answered
// with a 5xx: the same one right after a failed verification is answered as before,
// without a request.
func (c *credential) verify(ctx context.Context, s *snapshot, next *configEntry) (tokenEntry, error) {
	settings := sha256.Sum256(fmt.Append(nil, next.tokenRequest()))
	if last := c.unverified; last != nil && last.settings == settings && last.until.Sub(c.env.now()) > 0 {
		return s.entry, last
	}
	entry, err := c.ask(ctx, s, next)
	switch e := err.(type) { //nolint:errorlint // ask wraps no error
	case *storageError:
		c.stale() // the write of the ledger may have succeeded despite the error
	case *exchangeError:
		c.save(ctx, s, s.config, entry) // config and token stay as they were, the ledger does not
		c.unverified = &unverifiedError{e, settings, c.env.now().Add(max(verifySpacing, e.retryAfter))}
		return entry, c.unverified
	}
	return entry, err
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
		if err := c.env.remove(ctx, key); err != nil {
			c.stale() // the delete may have succeeded despite the error
			return err
		}
	}
	c.publish(s, nil, tokenEntry{}, false)
	if notConfigured(c.unusable(s)) {
		return nil
	}
	c.counters.Store(new(counters))
	c.env.send("autopay/config-delete", configPrefix, true, c.name)
	c.log().Info("credential deleted")
	return nil
}

// save stores an entry and publishes it. An entry that can't be stored is served
// from memory until a later refresh stores it (rule 9). A node that has lost the right
// to write reads storage again instead, because another node writes it now.
func (c *credential) save(ctx context.Context, s *snapshot, config *configEntry, entry tokenEntry) {
	var err error
	if config == nil && len(entry.Requests) == 0 && entry.AccessToken == "" {
		err = c.env.remove(ctx, tokenPrefix+c.name) // nothing to keep of a refused creation
	} else {
		err = c.env.put(ctx, tokenPrefix+c.name, entry)
	}
	readOnly := errors.Is(err, logical.ErrReadOnly)
	if err != nil && !readOnly && ctx.Err() == nil {
		c.log().Error("the token entry can't be stored and is kept in memory", "error", err)
	}
	c.publish(s, config, entry, err != nil && !readOnly)
	if config == nil || readOnly {
		c.stale() // storage is authoritative
	}
}

// saveAgain stores an entry that could not be stored before.
func (c *credential) saveAgain(ctx context.Context, s *snapshot) {
	if err := c.env.put(ctx, tokenPrefix+c.name, s.entry); err != nil {
		c.log().Debug("the token entry still can't be stored", "error", err)
		return
	}
	c.publish(s, s.config, s.entry, false)
	c.log().Info("the token entry was stored")
}
