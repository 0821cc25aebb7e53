package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
)

// mount holds the credentials of one mount: it finds them, loads them after a
// start, and keeps them going. It is safe for concurrent use.
type mount struct {
	*node
	credentials sync.Map // name -> *credential

	invalidations atomic.Uint64 // counts the changes that other nodes made
	// loadedAt is one more than the invalidations at the start of the last load
	// that brought every configured name into memory; 0: none did yet.
	loadedAt   atomic.Uint64
	loading    atomic.Bool // a load is under way
	loadFailed bool        // whether the last load failed; guarded by loading
}

// notConfiguredError says that nothing is configured under a name.
type notConfiguredError struct{ name string }

// Error implements error. The path is relative to the mount, because a request
// names its mount from the root namespace, which the reader may not be in.
func (e *notConfiguredError) Error() string {
	path := "config"
	if e.name != defaultName {
		path += "/" + e.name
	}
	return fmt.Sprintf("this credential is not configured; first write client_id and client_secret to %s on this mount", path)
}

// notConfigured reports that an error says that nothing is configured.
func notConfigured(err error) bool {
	var missing *notConfiguredError
	return errors.As(err, &missing)
}

// known returns a credential that is in memory, or nil.
func (m *mount) known(name string) *credential {
	if v, ok := m.credentials.Load(name); ok {
		return v.(*credential)
	}
	return nil
}

// credential returns the one credential of a name, made if there is none yet.
func (m *mount) credential(name string) *credential {
	if c := m.known(name); c != nil {
		return c
	}
	v, _ := m.credentials.LoadOrStore(name, newCredential(m.node, name))
	return v.(*credential)
}

// lookup returns a credential and what readers see of it. If err is nil, both are
// there. The error is a *notConfiguredError, which adds nothing to memory, a
// *damagedError or a *storageError. Beside an error the credential is nil if
// memory does not know the name.
func (m *mount) lookup(ctx context.Context, name string) (c *credential, s *snapshot, err error) {
	if c = m.known(name); c == nil {
		seen := m.invalidations.Load()
		s, err = m.load(ctx, name, nil)
		if err != nil {
			return nil, nil, err
		}
		if s.config == nil && s.damage == nil {
			return nil, nil, &notConfiguredError{name}
		}
		c = m.credential(name)
		c.replace(nil, s)
		if m.invalidations.Load() != seen {
			c.stale() // the change may have come after the read, and found no credential to mark
		}
	}
	if s, err = c.current(ctx); err == nil {
		err = c.unusable(s)
	}
	return c, s, err
}

// unusable is why a snapshot of the credential can't be used, as lookup says it;
// nil if it can.
func (c *credential) unusable(s *snapshot) error {
	switch {
	case s.damage != nil:
		return s.damage
	case s.config == nil:
		return &notConfiguredError{c.name}
	}
	return nil
}

// loadAll brings all configured credentials into memory, which sets their timers.
// It works in the background, because Vault waits for its callers. After another
// node has changed something it lists the names again, since one may be new.
func (m *mount) loadAll() {
	if m.loadedAt.Load() == m.invalidations.Load()+1 || !m.loading.CompareAndSwap(false, true) {
		return
	}
	m.spawn(func(ctx context.Context) {
		defer m.loading.Store(false)
		seen := m.invalidations.Load()
		names, err := m.storage.List(ctx, configPrefix)
		for _, name := range names {
			// A credential that is damaged or deleted by now is no reason to load again.
			if _, s, e := m.lookup(ctx, name); s == nil && !notConfigured(e) {
				err = e
			}
		}
		if err == nil {
			m.loadedAt.Store(seen + 1)
		} else if ctx.Err() == nil && !m.loadFailed {
			m.logger.Error("some credentials can't be loaded, trying again every minute", "mount", m.mountPath(), "error", err)
		}
		m.loadFailed = err != nil
	})
}

// watch starts every refresh that is due and not under way, also for what could
// not be stored or is to be read again. It returns at once.
func (m *mount) watch() {
	if !m.mayWrite() {
		return
	}
	m.loadAll()
	now := m.now()
	m.credentials.Range(func(_, v any) bool {
		c := v.(*credential)
		s := c.snap.Load()
		switch {
		case s == nil: // being loaded
		case s.storageVersion != c.storageVersion.Load(), s.unsaved, s.config != nil && s.due(now):
			c.refresh()
		}
		return true
	})
}

// changedElsewhere marks what another node has changed in storage to be read again.
func (m *mount) changedElsewhere(key string) {
	// Counted before the credential is looked up: lookup relies on this order.
	m.invalidations.Add(1)
	prefix, name, _ := strings.Cut(key, "/")
	if prefix += "/"; prefix != configPrefix && prefix != tokenPrefix {
		return
	}
	if c := m.known(name); c != nil {
		c.stale()
	}
}

// close stops all timers and jobs. It may be called twice.
func (m *mount) close() {
	m.stop()
	m.credentials.Range(func(_, v any) bool {
		v.(*credential).arm() // stops it
		return true
	})
}
