package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"

	"github.com/hashicorp/vault/sdk/logical"
)

// The jobs that change a credential. Whoever runs one holds its slot.

// renew obtains a new token if one is due, or in any case when an operator
// asks. The caller holds the slot.
func (c *credential) renew(ctx context.Context, operator bool) error {
	s, err := c.current(ctx)
	if err != nil || s.config == nil {
		return err
	}
	if now := c.b.now(); !operator && s.live(now) && !s.due(now) {
		c.arm()
		return nil
	}
	entry, err := c.ask(ctx, s, s.config, operator)
	var (
		f    *fault
		wait *failure
	)
	switch {
	case errors.As(err, &f):
		entry = entry.failed(s.config.Generation, f, s.config.TokenRequestLimit, c.b.now())
		err = entry.Failure
		if f.unstored() {
			c.publish(s, s.config, entry, s.unsaved)
			return err
		}
	case errors.As(err, &wait):
		c.b.log(c.name).Warn("no request may leave now", "state", s.state(c.b.now()), "error", wait.Text, "next_attempt", formatTime(wait.NextAttempt))
		c.arm()
		return err
	case err != nil:
		return err // the tick tries again
	}
	c.save(ctx, s, s.config, entry)
	return err
}

// ask makes one request to Autopay for a token of config's settings. It is the
// one place that decides whether a request may leave: only from a node that
// may write (rule 10), within the ledger's limit (rule 8) and, but for an
// operator, outside the backoff (rule 5). The request is stored in the ledger
// before it leaves; what comes back is for the caller to store. An error that
// is a *fault is a request that brought no token; with any other, none left.
func (c *credential) ask(ctx context.Context, s *snapshot, config *configEntry, operator bool) (tokenEntry, error) {
	sent := c.b.now()
	if !c.b.mayWrite() {
		return s.entry, logical.ErrReadOnly
	}
	if f := s.entry.limited(config.TokenRequestLimit, sent); f != nil {
		c.counts.Load().requests[requestLimited].Add(1)
		return s.entry, f
	}
	if f := s.blocked(sent); f != nil && !operator {
		return s.entry, f
	}
	entered := s.entry.entered(sent)
	if err := c.b.putToken(ctx, c.name, entered); err != nil {
		if isReadOnly(err) {
			return s.entry, logical.ErrReadOnly
		}
		if ctx.Err() != nil {
			return s.entry, errClosed
		}
		return s.entry, &fault{text: cleanText(err.Error(), config.ClientSecret), status: http.StatusInternalServerError, noToken: true}
	}
	c.b.log(c.name).Debug("asking for a token")
	begun := c.b.now()
	answer, f := c.b.client.exchange(ctx, config.tokenRequest())
	if ctx.Err() != nil {
		return entered, errClosed
	}
	now := c.b.now()
	entry := entered
	if f == nil {
		if entry = entered.obtained(config.Generation, answer, sent, now); !now.Before(entry.liveUntil()) {
			f = &fault{text: "Autopay's token had expired when it arrived", status: http.StatusServiceUnavailable}
		}
	}
	c.counts.Load().exchanged(f, now.Sub(begun))
	switch {
	case f == nil:
		return entry, nil
	case f.noToken:
		entered = entered.struckOut()
	}
	return entered, f
}

// unstored reports a request that never left, for the ledger could not be stored.
func (f *fault) unstored() bool { return f.status == http.StatusInternalServerError }

// rotate replaces the token now, unless it is so young that others who saw
// the same refusal must have asked before. The caller holds the slot.
func (c *credential) rotate(ctx context.Context) (warning string, err error) {
	s, err := c.current(ctx)
	if err != nil || s.config == nil {
		return "", err
	}
	now := c.b.now()
	if s.live(now) && now.Sub(s.entry.LastVaultRotation) < youngToken {
		return "this token is younger than 60 s and was kept", nil
	}
	// Autopay may answer with the same token again, which stays as old as it is.
	if s.live(now) && s.entry.Failure == nil && now.Sub(s.entry.lastRequest()) < youngToken {
		return "Autopay was asked for a token less than 60 s ago, and this one was kept", nil
	}
	if f := s.entry.Failure; f != nil && now.Sub(f.Time) < rotateSpacing {
		return "", f
	}
	if err := c.renew(ctx, true); err != nil {
		return "", err
	}
	if c.snap.Load().entry.AccessToken == s.entry.AccessToken {
		return "Autopay answered with the same token again", nil
	}
	return "", nil
}

// configure puts next in the place of s's config, proved first where it
// changes what a token is issued for. The caller holds the slot.
func (c *credential) configure(ctx context.Context, s *snapshot, next *configEntry, verify bool) error {
	if s.config == nil {
		// The ledger outlives a creation that failed, or a damaged config.
		left, err := c.b.getToken(ctx, c.name)
		if err != nil {
			return err
		}
		s = &snapshot{epoch: s.epoch, entry: left.forGeneration("")}
	}
	entry := s.entry
	issued := s.config == nil || !next.issuesAs(s.config)
	proved := issued && verify
	switch {
	case !issued && *next == *s.config:
		return nil
	case issued:
		next.Generation = rand.Text()
	}
	if proved {
		var err error
		if entry, err = c.prove(ctx, s, next); err != nil {
			return err
		}
	}
	if err := c.b.putConfig(ctx, c.name, next); err != nil {
		if proved {
			kept := s.entry
			kept.Requests = entry.Requests // the proof was made, and counts
			c.save(ctx, s, s.config, kept)
		}
		c.epoch.Add(1) // it may have been written all the same
		return err
	}
	if proved {
		c.save(ctx, s, next, entry)
	} else {
		c.publish(s, next, entry.eased(c.b.now()), s.unsaved)
	}
	c.event(eventConfigWrite, "config", "true")
	c.b.log(c.name).Info("credential configured", "new_token", issued, "proved", proved)
	return nil
}

// prove asks for a token with settings that are not stored yet. Vault's
// clients repeat a write that was answered 5xx: the same one right after a
// failed proof is answered as before, and no request leaves.
func (c *credential) prove(ctx context.Context, s *snapshot, next *configEntry) (tokenEntry, error) {
	settings := sha256.Sum256(fmt.Append(nil, next.tokenRequest()))
	if last := c.unproved; last != nil && last.settings == settings && c.b.now().Sub(last.at) < proofSpacing {
		return s.entry, last
	}
	entry, err := c.ask(ctx, s, next, true)
	var f *fault
	if !errors.As(err, &f) {
		return entry, err
	}
	if !f.unstored() { // the old config and token stay as they were, the ledger does not
		c.save(ctx, s, s.config, entry)
	}
	c.unproved = &unprovedError{f, settings, c.b.now()}
	return entry, c.unproved
}

// remove deletes the credential, its token and its ledger. The caller holds
// the slot. The config goes last: while it is there, a delete can be repeated.
func (c *credential) remove(ctx context.Context) error {
	for _, key := range []string{tokenPrefix + c.name, configPrefix + c.name} {
		if err := c.b.deleteKey(ctx, key); err != nil {
			c.epoch.Add(1) // it may be gone all the same
			return err
		}
	}
	c.publish(c.snap.Load(), nil, tokenEntry{}, false)
	c.counts.Store(new(counts))
	c.event(eventConfigDelete, "config", "true")
	c.b.log(c.name).Info("credential deleted")
	return nil
}

// save stores an entry and publishes it. Where it can't be stored, it is
// served from memory until the tick stores it (rule 9).
func (c *credential) save(ctx context.Context, s *snapshot, config *configEntry, entry tokenEntry) {
	var err error
	if config == nil && len(entry.Requests) == 0 {
		err = c.b.deleteKey(ctx, tokenPrefix+c.name) // nothing is left to keep of a refused creation
	} else {
		err = c.b.putToken(ctx, c.name, entry)
	}
	if err != nil && ctx.Err() == nil {
		c.b.log(c.name).Error("the token entry can't be stored, it is kept in memory", "error", err)
	}
	c.publish(s, config, entry, err != nil && !isReadOnly(err))
	if config == nil || isReadOnly(err) {
		c.epoch.Add(1) // storage knows better
	}
}

// publish puts a new snapshot in the place of s, and logs a change of state.
// An invalidation that came since s was read makes the new one stale at once.
func (c *credential) publish(s *snapshot, config *configEntry, entry tokenEntry, unsaved bool) {
	next := newSnapshot(config, entry)
	now := c.b.now()
	next.epoch, next.unsaved, next.shown = s.epoch, unsaved, next.state(now)
	c.snap.Store(next)
	c.arm()
	if config == nil {
		return
	}
	c.announce(s, next)
	log := c.b.log(c.name)
	switch state, f := next.shown, next.entry.Failure; {
	case f != nil && s.shown == state && s.entry.Failure != nil && s.entry.Failure.Status == f.Status:
		log.Debug("still no new token", "state", state, "error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	case f != nil && state == stateDegraded:
		log.Warn("no new token, serving the one in hand", "error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	case f != nil:
		log.Error("no token to serve", "error", f.Text, "next_attempt", formatTime(f.NextAttempt))
	case next.entry.AccessToken != s.entry.AccessToken && next.live(now):
		log.Info("new token", "expire_time", formatTime(next.entry.ExpireTime), "next_rotation", formatTime(next.dueAt()))
	}
}

// store writes an unsaved entry. The tick calls it.
func (c *credential) store(ctx context.Context) error {
	s := c.snap.Load()
	if !s.unsaved || !c.b.mayWrite() {
		return nil
	}
	if err := c.b.putToken(ctx, c.name, s.entry); err != nil {
		return err
	}
	c.publish(s, s.config, s.entry, false)
	c.b.log(c.name).Info("the token entry is stored again")
	return nil
}
