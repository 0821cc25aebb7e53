package main

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
)

// spyStorage counts operations and fails those that fail tells it to.
type spyStorage struct {
	logical.InmemStorage
	reads, writes atomic.Int64
	putTakes      atomic.Int64 // nanoseconds
	mu            sync.Mutex
	fail          func(op, key string) error // guarded by mu; nil: nothing fails
}

func (s *spyStorage) failWith(fail func(op, key string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

// failOn makes one operation fail on all keys with a prefix.
func (s *spyStorage) failOn(op, prefix string, err error) {
	s.failWith(func(o, key string) error {
		if o == op && strings.HasPrefix(key, prefix) {
			return err
		}
		return nil
	})
}

func (s *spyStorage) check(op, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		return nil
	}
	return s.fail(op, key)
}

func (s *spyStorage) Get(ctx context.Context, key string) (*logical.StorageEntry, error) {
	s.reads.Add(1)
	if err := s.check("get", key); err != nil {
		return nil, err
	}
	return s.InmemStorage.Get(ctx, key)
}

func (s *spyStorage) Put(ctx context.Context, entry *logical.StorageEntry) error {
	s.writes.Add(1)
	time.Sleep(time.Duration(s.putTakes.Load()))
	if err := s.check("put", entry.Key); err != nil {
		return err
	}
	return s.InmemStorage.Put(ctx, entry)
}

func (s *spyStorage) Delete(ctx context.Context, key string) error {
	s.writes.Add(1)
	if err := s.check("delete", key); err != nil {
		return err
	}
	return s.InmemStorage.Delete(ctx, key)
}

func (s *spyStorage) List(ctx context.Context, prefix string) ([]string, error) {
	s.reads.Add(1)
	if err := s.check("list", prefix); err != nil {
		return nil, err
	}
	return s.InmemStorage.List(ctx, prefix)
}

// logBuffer keeps what was logged. It is safe for concurrent use.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// spyView is a system view that counts the calls back into Vault. It starts
// as the active node of a primary cluster.
type spyView struct {
	logical.StaticSystemView
	calls   atomic.Int64
	state   atomic.Uint32
	tainted atomic.Bool
}

func (v *spyView) ReplicationState() consts.ReplicationState {
	v.calls.Add(1)
	return consts.ReplicationState(v.state.Load())
}

func (v *spyView) Tainted() bool {
	v.calls.Add(1)
	return v.tainted.Load()
}
