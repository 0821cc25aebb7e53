// Command ordinary is what `make bench` compares the engine with: the least that a
// secrets engine written on the SDK's framework can do. Its answers have the fields
// and the size of the engine's.
//
//	token   answers from memory
//	token1  reads its token from storage first
//	token3  reads a config, a role and the token from storage first
package main

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/plugin"
)

const period = 18 * time.Hour

// entry is what memory and storage hold.
type entry struct {
	AccessToken string    `json:"access_token"`
	Scope       string    `json:"scope"`
	ExpireTime  time.Time `json:"expire_time"`
	Rotation    time.Time `json:"last_vault_rotation"`
}

type backend struct {
	*framework.Backend
	mu    sync.RWMutex // guards entry
	entry entry
}

func main() {
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true})
	if err := plugin.ServeMultiplex(&plugin.ServeOpts{BackendFactoryFunc: factory, Logger: logger}); err != nil {
		logger.Error("plugin server ended", "error", err)
		os.Exit(1)
	}
}

// factory implements logical.Factory.
func factory(ctx context.Context, conf *logical.BackendConfig) (logical.Backend, error) {
	b := &backend{}
	b.Backend = &framework.Backend{
		BackendType:    logical.TypeLogical,
		InitializeFunc: b.initialize,
		Paths: []*framework.Path{
			b.tokenPath("token"),
			b.tokenPath("token1", "token"),
			b.tokenPath("token3", "config", "role", "token"),
		},
	}
	return b, b.Setup(ctx, conf)
}

// initialize makes a token of the size of the simulator's.
func (b *backend) initialize(ctx context.Context, req *logical.InitializationRequest) error {
	now := time.Now().UTC().Truncate(time.Second)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entry = entry{"sim." + strings.Repeat("x", 43), "customer_club", now.Add(24 * time.Hour), now}
	for _, key := range []string{"config", "role", "token"} {
		stored, err := logical.StorageEntryJSON(key, b.entry)
		if err != nil {
			return err
		}
		if err := req.Storage.Put(ctx, stored); err != nil {
			return err
		}
	}
	return nil
}

// tokenPath answers a read with the token, after it has read these keys from storage.
func (b *backend) tokenPath(path string, keys ...string) *framework.Path {
	read := func(ctx context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		b.mu.RLock()
		e := b.entry
		b.mu.RUnlock()
		for _, key := range keys {
			stored, err := req.Storage.Get(ctx, key)
			if err != nil || stored == nil {
				return nil, err
			}
			if err := stored.DecodeJSON(&e); err != nil {
				return nil, err
			}
		}
		return &logical.Response{Data: map[string]any{
			"access_token":        e.AccessToken,
			"token_type":          "Bearer",
			"scope":               e.Scope,
			"expire_time":         e.ExpireTime.Format(time.RFC3339),
			"last_vault_rotation": e.Rotation.Format(time.RFC3339),
			"rotation_period":     int64(period / time.Second),
			"ttl":                 int64(time.Until(e.Rotation.Add(period)) / time.Second),
		}}, nil
	}
	return &framework.Path{
		Pattern: path,
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation: &framework.PathOperation{Callback: read},
		},
	}
}
