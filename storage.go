package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// # Storage
//
// Storage is the truth (rule 6): memory is a copy of it, but for an entry that could
// not be written (rule 9, snapshot.unsaved).
//
//   - Two keys hold one credential, because they live in different places. Vault
//     replicates config/ to every cluster. token/ is local: it goes to DR secondaries
//     and not to performance secondaries, which keep tokens and ledgers of their own.
//     Both are seal-wrapped.
//   - The generation ties a token to its settings (rule 7). Settings are written first,
//     under a new random generation, and then the token with the same one. Whatever
//     crashes in between leaves a token of another generation, which is not used. The
//     ledger survives a change of generation.
//   - A write that failed may have been done: the answer may have been lost. After a
//     failed write of settings, and after a failed delete, memory is marked stale.
//   - Reading is lenient, so that an upgrade or a downgrade keeps the tokens; writes
//     check everything. Settings need what a token is issued for; any other value that
//     is not understood becomes its default. A token entry is read as a whole; if that
//     fails, its ledger is kept.
//   - Errors of storage cross the plugin boundary as text (sdk/plugin/grpc_storage.go),
//     so a node that may not write is recognized by the text.
const (
	configPrefix = "config/" // config/NAME holds a configEntry
	tokenPrefix  = "token/"  // token/NAME holds a tokenEntry
)

// storageError is an operation of Vault's storage that failed.
type storageError struct {
	operation string // such as "reading config/NAME from storage"
	err       error
}

// Error implements error.
func (e *storageError) Error() string { return e.operation + ": " + e.err.Error() }

// damagedError is a stored config that can't be used.
type damagedError struct {
	name string
	err  error
}

// Error implements error.
func (e *damagedError) Error() string {
	return fmt.Sprintf("the stored credential %q is damaged: %v; "+
		"write it again with client_id and client_secret, or delete it", e.name, e.err)
}

// load builds a snapshot of what storage holds. If old has an entry that storage
// does not have yet, that one counts (rule 9). Without usable settings the snapshot
// still holds the stored entry, for its ledger: a creation that failed may have left
// one, and damaged settings are written again under the same limit.
func (env *environment) load(ctx context.Context, name string, old *snapshot) (*snapshot, error) {
	stored, err := env.get(ctx, configPrefix+name)
	if err != nil {
		return nil, err
	}
	var config *configEntry
	var damage *damagedError
	if stored != nil {
		if config, err = decodeConfig(stored.Value); err != nil {
			damage = &damagedError{name, err}
		}
	}
	now := env.now()
	if config != nil && old != nil && old.unsaved {
		s := newSnapshot(config, old.entry, now)
		s.unsaved = true
		return s, nil
	}
	if stored, err = env.get(ctx, tokenPrefix+name); err != nil {
		return nil, err
	}
	var entry tokenEntry
	if stored != nil {
		var whole bool
		if entry, whole = decodeToken(stored.Value, now); !whole { // costs one request, within the limit
			env.log(name).Error("the stored token entry is damaged; only its ledger of requests is kept, if it can be read")
		}
	}
	// A token that is in memory keeps its reading of the clock. A new reading would
	// lengthen its life if the wall clock had been set back since (rule 4). Another
	// token from further in the future than clocks differ is left out, because its
	// age is unknown.
	switch {
	case old != nil && old.entry.AccessToken == entry.AccessToken && old.entry.ExpireTime.Equal(entry.ExpireTime):
		entry.clock = old.entry.clock
	case entry.LastVaultRotation.After(now.Add(maxClockSkew)):
		entry = tokenEntry{Generation: entry.Generation, Requests: entry.Requests, Failure: entry.Failure}
	}
	s := newSnapshot(config, entry, now)
	s.damage = damage
	return s, nil
}

// get reads what storage holds at a key; nil if nothing. The error is a *storageError.
func (env *environment) get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	stored, err := env.storage.Get(ctx, key)
	if err != nil {
		return nil, &storageError{"reading " + key + " from storage", err}
	}
	return stored, nil
}

// put stores a value. Nothing is written once the mount has been stopped, because another
// process may have begun to serve it. The error is a *storageError, the context's, or
// logical.ErrReadOnly.
func (env *environment) put(ctx context.Context, key string, value any) error {
	stored, err := logical.StorageEntryJSON(key, value)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = writeError("writing "+key+" to storage", env.storage.Put(ctx, stored))
	}
	return err
}

// remove deletes what storage holds at a key. The error is as that of put.
func (env *environment) remove(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return writeError("deleting "+key+" from storage", env.storage.Delete(ctx, key))
}

// writeError is the error of a write that failed: nil if err is.
func writeError(operation string, err error) error {
	switch {
	case err == nil:
		return nil
	case strings.Contains(err.Error(), logical.ErrReadOnly.Error()):
		return logical.ErrReadOnly
	}
	return &storageError{operation, err}
}
