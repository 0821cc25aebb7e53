package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestNothingIsWrittenAfterStop(t *testing.T) {
	t.Parallel()
	e := configured(t)
	writes := e.storage.writes.Load()
	e.stop()
	for what, err := range map[string]error{
		"config": e.environment.put(e.life, configPrefix+"default", newConfigEntry()),
		"token":  e.environment.put(e.life, tokenPrefix+"default", tokenEntry{}),
		"delete": e.remove(e.life, "token/default"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := e.storage.writes.Load(); got != writes {
		t.Errorf("%d writes", got-writes)
	}
}

// TestStoredByV010 loads what v0.1.0 stored, and what a later version may add: the
// same tokens go on, without a request.
func TestStoredByV010(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(stored string) string{
		"as it was stored": func(stored string) string { return stored },
		"with what a later version adds": func(stored string) string {
			return strings.Replace(stored, "{", `{"introduced_later":{"a":[1]},`, 1)
		},
		"with a rule that came later": func(stored string) string {
			return strings.Replace(stored, `"request_timeout":10`, `"request_timeout":3600`, 1)
		},
		"with a number of a later form": func(stored string) string {
			return strings.Replace(stored, `"token_request_limit":100`, `"token_request_limit":{"per_day":100}`, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				e := newEngine(t, autopaysim.Options{})
				e.clean(t.Context())
				e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503}) // the retry of a failed refresh is due
				const folder = "testdata/v0.1.0"
				err := fs.WalkDir(os.DirFS(folder), ".", func(path string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() {
						return err
					}
					stored, err := os.ReadFile(filepath.Join(folder, path))
					if err != nil {
						return err
					}
					return e.storage.Put(t.Context(), &logical.StorageEntry{Key: strings.TrimSuffix(path, ".json"), Value: []byte(change(string(stored)))})
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Minute) // the entries were stored two minutes into 2000
				e.start()
				for name, want := range map[string]string{"plain": "2000-01-01T00:02:00Z", "full": "2000-01-01T00:00:00Z"} {
					resp, err := e.read("token/" + name)
					if err != nil || resp.IsError() || resp.Data["last_vault_rotation"] != want {
						t.Errorf("%s: %v %v, want the token of %s", name, resp, err, want)
					}
				}
				if got := e.status("status/unproved")["state"]; got != "pending" {
					t.Errorf("unproved is %v, want pending", got)
				}
				config := e.status("config/full")
				if config["client_secret_updated_time"] != nil {
					t.Errorf("client_secret_updated_time is %v, want null", config["client_secret_updated_time"])
				}
				if config["rotation_period"] != int64(43200) || config["token_request_limit"] != 7 || !strings.HasPrefix(config["ca_cert"].(string), "-----BEGIN") {
					t.Errorf("config/full: %v", config)
				}
				if used := e.status("status/plain")["token_requests_24h"]; used != 2 {
					t.Errorf("%v requests in the ledger of plain, want 2", used)
				}
			})
		})
	}
}
