package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestUnknownNamesLeaveNoTrace is about readers whose policy ends in a wildcard, and
// about keys that other nodes change: names that are not configured cost no memory,
// no write and no request.
func TestUnknownNamesLeaveNoTrace(t *testing.T) {
	t.Parallel()
	for path, test := range map[string]struct {
		op   logical.Operation
		code int
	}{
		"token/":         {logical.ReadOperation, http.StatusBadRequest},
		"status/":        {logical.ReadOperation, http.StatusNotFound},
		"config/":        {logical.ReadOperation, http.StatusNotFound},
		"rotate/":        {logical.UpdateOperation, http.StatusBadRequest},
		"config/deleted": {logical.DeleteOperation, http.StatusNotFound}, // of the SDK's nil; a 204 in Vault
		"config/new":     {logical.UpdateOperation, http.StatusBadRequest},
	} {
		e := configured(t)
		e.token("token")
		reads, writes := e.storage.reads.Load(), e.storage.writes.Load()
		for i := range 1000 {
			name := fmt.Sprintf("%s%d", strings.Repeat("x", 100), i)
			e.InvalidateKey(t.Context(), path+name)
			e.wantCode(test.code)(e.do(t.Context(), test.op, path+name, nil))
		}
		e.storage.failOn("get", "config/unread", errors.New("input/output error"))
		kind, _, _ := strings.Cut(path, "/")
		e.wantCode(http.StatusInternalServerError)(e.do(t.Context(), test.op, kind+"/unread", nil))
		held := 0
		e.credentials.Range(func(any, any) bool { held++; return true })
		if r, w := e.storage.reads.Load()-reads, e.storage.writes.Load()-writes; held != 1 || r > 4000 || w != 0 {
			t.Errorf("%s: %d credentials in memory, want 1; %d reads, %d writes for 1000 requests", path, held, r, w)
		}
		e.wantRequests(1)
	}
}

// TestLoadSkipsWhatCannotBeRead: one credential is deleted while the names are listed, and
// then one can't be read. The other is loaded, and the latter is too, once it can be.
func TestLoadSkipsWhatCannotBeRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		for _, name := range []string{"broken", "deleted", "good"} {
			e.configure(name)
		}
		e.storage.after(func(op, _ string) error {
			if op == "list" {
				return e.storage.InmemStorage.Delete(t.Context(), "config/deleted")
			}
			return nil
		})
		e.restart()
		e.minute()
		e.storage.failOn("get", "config/broken", errors.New("cipher: message authentication failed"))
		e.restart()
		time.Sleep(18*time.Hour + time.Minute)
		for range 10 {
			e.minute()
		}
		e.wantRequests(4)
		if n := strings.Count(e.logs.String(), "can't be loaded"); n != 1 {
			t.Errorf("%d log lines, want one", n)
		}
		e.storage.heal()
		e.minute()
		e.wantRequests(5)
	})
}
