package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestOversizedStoredEntries puts a megabyte and more where the engine reads. The
// engine must not fall over or show what it finds, and must keep to the limit.
func TestOversizedStoredEntries(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("canary", 350_000)
	good := configEntry{ClientID: testID, ClientSecret: testSecret, RequestTimeout: 10, TokenRequestLimit: 1, Generation: "g"}
	entry := func(change func(*tokenEntry)) tokenEntry {
		e := tokenEntry{
			Generation: "g", AccessToken: "t", LastVaultRotation: start2000, ExpireTime: start2000.Add(time.Hour),
			Requests: []int64{start2000.Unix()},
		}
		change(&e)
		return e
	}
	for name, test := range map[string]struct {
		config   any
		token    any
		code     int
		says     string
		requests int
	}{
		"secret": {func(c configEntry) configEntry { c.ClientSecret = big; return c }(good), nil, 502, "Autopay refused the credential", 1},
		"nested": {json.RawMessage(strings.Repeat(`{"client_id":`, 200_000) + "1" + strings.Repeat("}", 200_000)), nil, 500, "is not the JSON", 0},
		"token":  {good, entry(func(e *tokenEntry) { e.AccessToken = big }), 503, "token_request_limit", 0},
		"scope":  {good, entry(func(e *tokenEntry) { e.Scope = big }), 503, "token_request_limit", 0},
		"words": {func(c configEntry) configEntry { c.TokenRequestLimit = 2; return c }(good), entry(func(e *tokenEntry) {
			e.AccessToken, e.Scope, e.ExpireTime, e.LastVaultRotation = "", "", time.Time{}, time.Time{}
			e.Failure = &failedAttempt{Text: big, Kind: refused, Time: start2000, Count: 1, NextAttempt: start2000.Add(time.Hour)}
		}), 200, "", 1}, // dropped, with room for a request
		"ledger": {good, entry(func(e *tokenEntry) { e.Requests = slices.Repeat([]int64{start2000.Unix()}, 1_000_000) }), 200, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, autopaysim.Options{})
			e.opts.now = func() time.Time { return start2000.Add(time.Minute) }
			for key, value := range map[string]any{"config/default": test.config, "token/default": test.token} {
				if value == nil {
					continue
				}
				data, _ := json.Marshal(value)
				if raw, ok := value.(json.RawMessage); ok {
					data = raw
				}
				e.put(key, string(data))
			}
			e.restart()
			for range 3 {
				resp, err := e.read("token")
				if code(resp, err) != test.code || !strings.Contains(say(resp, err), test.says) || len(say(resp, err)) > 500 {
					t.Errorf("got %d %.500q, want %d with %q", code(resp, err), say(resp, err), test.code, test.says)
				}
				resp, err = e.read("status")
				if strings.Contains(flatten(resp)+say(resp, err)+e.logs.String(), "canary") {
					t.Error("what is stored is shown")
				}
			}
			e.wantRequests(test.requests)
		})
	}
}

func TestNothingIsWrittenAfterStop(t *testing.T) {
	t.Parallel()
	e := configured(t)
	writes := e.storage.writes.Load()
	e.stop()
	for what, err := range map[string]error{
		"config": e.putConfig(e.life, "default", newConfigEntry()),
		"token":  e.putToken(e.life, "default", tokenEntry{}),
		"delete": e.deleteKey(e.life, "token/default"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := e.storage.writes.Load(); got != writes {
		t.Errorf("%d writes", got-writes)
	}
}
