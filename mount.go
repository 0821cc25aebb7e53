package main

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/vault/sdk/framework"
)

// mount holds the credentials of one mount: it finds them, loads them after a start,
// and keeps them going. It is safe for concurrent use.
//
// A credential comes into memory when it is first asked for, or after a start by
// loadAll, and stays there. Names that are not configured cost no memory, because
// anyone whose policy ends in a wildcard can ask for any number of them. After a start
// the first tick is a minute away, so loadAll runs at once, in the background: without
// it, a token that falls due in that minute would be replaced late.
type mount struct {
	*environment
	credentials sync.Map // name -> *credential

	invalidations atomic.Uint64 // counts the changes that other nodes made
	// loadedAt is invalidations+1, as read at the start of the last complete load; 0 if
	// there was no complete load yet.
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
	return "this credential is not configured; first write client_id and client_secret to " + path + " on this mount"
}

// notConfigured reports that an error says that nothing is configured.
func notConfigured(err error) bool {
	return errors.As(err, new(*notConfiguredError))
}

// known returns a credential that is in memory, or nil.
func (m *mount) known(name string) *credential {
	if v, ok := m.credentials.Load(name); ok {
		return v.(*credential)
	}
	return nil
}

// credential returns the one credential of a name, made if there is none yet. Two callers
// who are first at the same time get the same one, so a name never has two locks.
func (m *mount) credential(name string) *credential {
	v, _ := m.credentials.LoadOrStore(name, newCredential(m.environment, name))
	return v.(*credential)
}

// lookup returns a credential and what readers see of it. If err is nil, both are
// there. The error is a *notConfiguredError, which adds nothing to memory, a
// *damagedError or a *storageError. Beside an error the credential is nil if
// memory does not know the name.
func (m *mount) lookup(ctx context.Context, name string) (c *credential, s *snapshot, err error) {
	if c = m.known(name); c == nil {
		stored, err := m.get(ctx, configPrefix+name)
		if err == nil && stored == nil {
			err = &notConfiguredError{name}
		}
		if err != nil {
			return nil, nil, err
		}
		c = m.credential(name) // reads storage again, so that it misses no change
	}
	if s, err = c.forReader(ctx); err == nil {
		err = c.unusable(s)
	}
	return c, s, err
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
		case s.changes != c.changes.Load(), s.unsaved, s.config != nil && s.due(now):
			c.refresh()
		}
		return true
	})
}

// changedElsewhere marks what another node has changed in storage to be read again. A
// credential that is not in memory is counted, so that loadAll lists the names again.
func (m *mount) changedElsewhere(key string) {
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

// validName is what Vault's own engines take for a name in a path.
var validName = regexp.MustCompile(`^\w(([\w-.]+)?\w)?$`)

// requestedName returns the name of the credential that a request is about:
// NAME, or default. The error is a *userError.
func requestedName(d *framework.FieldData) (string, error) {
	switch name := d.Get(fieldName).(string); {
	case name == "":
		return defaultName, nil
	case len(name) > maxNameSize || !validName.MatchString(name) || strings.Contains(name, ".."): // which storage refuses
		return "", &userError{"name may have up to 128 characters: letters, digits, _, - and .; " +
			"it must begin and end with a letter, a digit or _, and must not contain two dots in a row"}
	default:
		return name, nil
	}
}

// requested looks up the credential that a request is about, as lookup does.
func (m *mount) requested(ctx context.Context, d *framework.FieldData) (*credential, *snapshot, error) {
	name, err := requestedName(d)
	if err != nil {
		return nil, nil, err
	}
	return m.lookup(ctx, name)
}

// lookupAny is lookup for callers that accept a damaged or missing credential.
func (m *mount) lookupAny(ctx context.Context, name string) (*credential, error) {
	c, _, err := m.lookup(ctx, name)
	if notConfigured(err) || errors.As(err, new(*damagedError)) {
		err = nil
	}
	return c, err
}
