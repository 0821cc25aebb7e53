package main

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestLedgerWhenStorageFails: once storage works again, it holds the requests that were
// sent and may have cost a token, and no others.
func TestLedgerWhenStorageFails(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fail func(e *engine)
		used int
	}{
		"verifications count though the config is not stored": {func(e *engine) {
			e.storage.failPuts(func(n int64) bool { return n > 1 })
			time.Sleep(2 * time.Minute)
			e.wantCode(http.StatusOK)(e.write("rotate", nil)) // unsaved
			e.storage.failOn("put", "config/", errors.New("disk full"))
			e.sim.SetClient("second", testSecret)
			for range 5 {
				e.wantCode(http.StatusInternalServerError)(e.write("config", fields{"client_id": "second"}))
			}
		}, 7},
		"a removal is stored later, though the settings have changed since": {func(e *engine) {
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(retryAfter(503, "3600"))
			e.storage.failPuts(func(n int64) bool { return n == 2 }) // the first is the ledger with the request
			e.wantCode(http.StatusServiceUnavailable)(e.write("rotate", nil))
			e.storage.heal()
			e.configure("default", "request_timeout", 20, "verify", false)
		}, 1},
		"a request is not sent, because the answer of storage is lost": {func(e *engine) {
			e.sim.SetFault(status(401))
			time.Sleep(18*time.Hour + 10*time.Second) // refused: the next attempt is in 5 minutes
			e.storage.after(func(string, string) error { return errors.New("the answer is lost") })
			e.wantCode(http.StatusInternalServerError)(e.write("rotate", nil))
		}, 1},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t)
			test.fail(e)
			e.storage.heal()
			e.minute()
			e.restart()
			e.want("status", "token_requests_24h", test.used)
		})
	}
}

// TestAFailedVerificationIsNotRepeatedAtOnce: Vault's clients repeat a write that was
// answered with a 5xx. The same write is sent again after verifySpacing, and not before
// the end of Retry-After, and says when it may be.
func TestAFailedVerificationIsNotRepeatedAtOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		wait  time.Duration
		until string
	}{
		"503":         {status(503), verifySpacing, "2000-01-01T00:00:05Z"},
		"Retry-After": {retryAfter(429, "120"), 2 * time.Minute, "2000-01-01T00:02:00Z; to store it without"},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t)
			e.sim.SetFault(test.fault)
			unchanged := e.wantCode(503, "nothing was changed; the same write may be tried again at "+test.until)
			for range test.wait / time.Second {
				unchanged(e.write("config", fields{"client_secret": "x"}))
				time.Sleep(time.Second)
			}
			e.wantRequests(2)
			e.sim.SetFault(autopaysim.Fault{})
			e.wantCode(http.StatusBadRequest)(e.write("config", fields{"client_id": "unknown"})) // other settings
			e.sim.SetClient(testID, "x")
			e.configure("default", "client_secret", "x")
			e.wantRequests(4)
		})
	}
}

// TestFailedWritesMayHaveBeenDone loses the answer of storage: memory must show
// what storage holds.
func TestFailedWritesMayHaveBeenDone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		key  string // whose answer is lost
		data fields // nil: a delete
		path string // of the read that shows it
		want []any  // nil: nothing is there
	}{
		"config, verify=false": {"config/", fields{"client_id": "b", "verify": false}, "config", []any{"client_id", "b"}},
		"config, verified":     {"config/", fields{"client_id": "b"}, "config", []any{"client_id", "b"}},
		"delete, the token":    {"token/", nil, "status", []any{"state", "pending"}},
		"delete, the config":   {"config/", nil, "status", nil},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := configured(t)
			e.sim.SetClient("b", testSecret)
			e.storage.after(func(op, key string) error {
				if op != "get" && strings.HasPrefix(key, test.key) {
					return errors.New("the answer is lost")
				}
				return nil
			})
			if fails := e.wantCode(http.StatusInternalServerError); test.data == nil {
				fails(e.delete("config"))
			} else {
				fails(e.write("config", test.data))
			}
			e.storage.heal()
			if test.want == nil {
				e.wantCode(http.StatusNotFound)(e.read(test.path))
			} else {
				e.want(test.path, test.want...)
			}
		})
	}
}

// TestDelete leaves nothing, not even the ledger of a creation that failed, also after
// a restart. A delete that failed can be repeated.
func TestDelete(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fault            autopaysim.Fault // while it is created
		restart, failing bool
	}{
		"a credential":               {},
		"a failed creation":          {fault("hang"), false, false},
		"it after a restart":         {fault("hang"), true, false},
		"again after one that fails": {failing: true},
	} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetFault(test.fault)
			_, _ = e.write("config", withSecret())
			if e.stored("token/default") == "" {
				t.Error("the request is not in the ledger")
			}
			if test.restart {
				e.restart()
			}
			if test.failing {
				e.storage.failOn("delete", "token/", errors.New("disk full"))
				e.wantCode(http.StatusInternalServerError)(e.delete("config"))
				e.storage.heal()
			}
			for range 2 { // to delete what is not there is a 204 too
				e.forget("default")
			}
			e.wantCode(http.StatusBadRequest)(e.read("token"))
			time.Sleep(48 * time.Hour)
			e.minute()
			e.wantRequests(1)
			e.sim.SetFault(autopaysim.Fault{})
			e.configure("default")
			e.want("status", "token_requests_24h", 1)
		})
	}
}
