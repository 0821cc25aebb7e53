package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/vault/sdk/logical"
)

// tokenPrefix in storage: token/NAME, local to the cluster.
const tokenPrefix = "token/"

// read builds a snapshot of what storage holds. An entry that memory has and
// storage not yet, as old tells, goes before the stored one (rule 9).
func (b *backend) read(ctx context.Context, name string, old *snapshot) (*snapshot, error) {
	config, damage, err := b.getConfig(ctx, name)
	if err != nil {
		return nil, err
	}
	if config == nil {
		return &snapshot{damage: damage}, nil
	}
	unsaved := old != nil && old.unsaved
	var entry tokenEntry
	if unsaved {
		entry = old.entry
	} else if entry, err = b.getToken(ctx, name); err != nil {
		return nil, err
	}
	s := newSnapshot(config, entry)
	s.unsaved = unsaved
	return s, nil
}

// getConfig reads a stored config: nil where there is none, with the damage
// where it can't be used.
func (b *backend) getConfig(ctx context.Context, name string) (config *configEntry, damage, err error) {
	stored, err := b.storage.Get(ctx, configPrefix+name)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the credential from storage: %w", err)
	}
	if stored == nil {
		return nil, nil, nil
	}
	config, err = decodeConfig(stored.Value)
	if err != nil {
		return nil, fmt.Errorf("the stored credential %q is damaged: %w; write it again with client_id and client_secret, or delete it",
			name, err), nil
	}
	return config, nil, nil
}

// getToken reads a stored token entry. A damaged one is dropped: the token
// in it is replaced by asking for another, within the limit.
func (b *backend) getToken(ctx context.Context, name string) (tokenEntry, error) {
	stored, err := b.storage.Get(ctx, tokenPrefix+name)
	if err != nil {
		return tokenEntry{}, fmt.Errorf("reading the token from storage: %w", err)
	}
	var entry tokenEntry
	if stored == nil {
		return entry, nil
	}
	if stored.DecodeJSON(&entry) != nil || !entry.valid() {
		b.log(name).Error("the stored token entry is damaged and dropped")
		entry = tokenEntry{Requests: entry.Requests} // the ledger stays, as far as it can be read
	}
	return entry.sane(b.now()), nil
}

func (b *backend) putConfig(ctx context.Context, name string, config *configEntry) error {
	return b.put(ctx, configPrefix+name, "the credential", config)
}

func (b *backend) putToken(ctx context.Context, name string, entry tokenEntry) error {
	return b.put(ctx, tokenPrefix+name, "the token entry", entry)
}

func (b *backend) put(ctx context.Context, key, what string, value any) error {
	stored, err := logical.StorageEntryJSON(key, value)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", what, err)
	}
	if err := ctx.Err(); err != nil {
		return err // nothing is written once the backend is closed
	}
	if err := b.storage.Put(ctx, stored); err != nil {
		return fmt.Errorf("storing %s: %w", what, err)
	}
	return nil
}

func (b *backend) deleteKey(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.storage.Delete(ctx, key); err != nil {
		return fmt.Errorf("deleting %s from storage: %w", key, err)
	}
	return nil
}

// isReadOnly reports that a node may not write. Errors of storage cross the
// plugin boundary as text (sdk/plugin/grpc_storage.go).
func isReadOnly(err error) bool {
	return err != nil && (errors.Is(err, logical.ErrReadOnly) || strings.Contains(err.Error(), logical.ErrReadOnly.Error()))
}
