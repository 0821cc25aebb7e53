package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
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
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.clean(t.Context())
			e.sim.SetFault(status(503)) // the retry of a failed refresh is due
			paths, err := filepath.Glob("testdata/v0.1.0/*/*.json")
			if err != nil || len(paths) == 0 {
				t.Fatal(paths, err)
			}
			for _, path := range paths {
				stored, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				key, _ := filepath.Rel("testdata/v0.1.0", strings.TrimSuffix(path, ".json"))
				e.put(filepath.ToSlash(key), change(string(stored)))
			}
			time.Sleep(3 * time.Minute) // the entries were stored two minutes into 2000
			e.start()
			for name, want := range map[string]string{"plain": "2000-01-01T00:02:00Z", "full": "2000-01-01T00:00:00Z"} {
				resp, err := e.read("token/" + name)
				if err != nil || resp.IsError() || resp.Data["last_vault_rotation"] != want {
					t.Errorf("%s: %v %v, want the token of %s", name, resp, err, want)
				}
			}
			e.want("status/unproved", "state", "pending")
			config := e.status("config/full")
			if config["client_secret_updated_time"] != nil {
				t.Errorf("client_secret_updated_time is %v, want null", config["client_secret_updated_time"])
			}
			if config["rotation_period"] != int64(43200) || config["token_request_limit"] != 7 || !strings.HasPrefix(config["ca_cert"].(string), "-----BEGIN") {
				t.Errorf("config/full: %v", config)
			}
			e.want("status/plain", "token_requests_24h", 2)
			e.want("config/plain", "request_timeout", int64(10)) // the default, where it can't be used
			e.want("config/plain", "token_request_limit", 100)
		})
	}
}

// storedFuzz is one run of FuzzStoredEntries. Its clock shows noon of 5 January 2026,
// which the seeds are written for, until the test moves it.
type storedFuzz struct {
	*engine
	config configEntry // as far as the entries can be read
	entry  tokenEntry
	moved  atomic.Int64 // seconds
	sent   atomic.Int64 // requests that left
}

func (z *storedFuzz) clock() time.Time {
	return time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC).Add(time.Duration(z.moved.Load()) * time.Second)
}

// FuzzStoredEntries starts the engine on any bytes at config/x and token/x, such as
// entries of other versions or damaged ones. Autopay may be down for the first day.
func FuzzStoredEntries(f *testing.F) {
	f.Fuzz(func(t *testing.T, config, token []byte, down bool) {
		z := &storedFuzz{config: configEntry{TokenRequestLimit: defaultRequestLimit}}
		_ = json.Unmarshal(config, &z.config)
		_ = json.Unmarshal(token, &z.entry)
		open := z.config.ClientID + z.config.TokenURL + z.config.Audience + z.config.CACert + z.entry.Scope
		if z.entry.Failure != nil {
			open += z.entry.Failure.Text
		}
		if strings.Contains(open, "canary") || strings.Contains(z.entry.AccessToken, testSecret) {
			t.Skip("a field that is no secret is shown")
		}
		z.engine = newEngine(t, autopaysim.Options{Now: z.clock})
		if down {
			z.sim.SetFault(status(http.StatusServiceUnavailable))
		}
		inner := z.opts.transport
		z.opts.now, z.opts.transport = z.clock, roundTripper(func(r *http.Request) (*http.Response, error) {
			z.sent.Add(1)
			return inner.RoundTrip(r)
		})
		for key, value := range map[string][]byte{"config/x": config, "token/x": token} {
			_ = z.storage.Put(t.Context(), &logical.StorageEntry{Key: key, Value: value}) // never fails
		}
		z.restart()
		if decoded, err := decodeConfig(config); err == nil {
			z.config = *decoded
			z.wantServed()
		} else {
			z.wantDamaged()
			z.restart()
			z.wantDamaged()
		}
		z.sim.SetFault(autopaysim.Fault{})
		z.configure("x", "token_url", "", "audience", "", "ca_cert", "", "rotation_period", 0, "request_timeout", 10, "token_request_limit", 0)
		z.token("token/x") // live at Autopay
		z.wantStatus()
		z.clean(t.Context())
		if strings.Contains(z.logs.String(), "canary") {
			t.Error("the log shows a secret or a token")
		}
	})
}

// wantDamaged checks that a damaged config is a 500 everywhere and sends no request.
func (z *storedFuzz) wantDamaged() {
	z.t.Helper()
	z.tick()
	for path, op := range map[string]logical.Operation{
		"config/x": logical.ReadOperation, "token/x": logical.ReadOperation, "status/x": logical.ReadOperation, "rotate/x": logical.UpdateOperation,
	} {
		resp, err := z.do(z.t.Context(), op, path, nil)
		wantFit(z.t, say(resp, err))
		if code(resp, err) != 500 || !strings.Contains(say(resp, err), "write it again with client_id and client_secret, or delete it") || z.sent.Load() > 0 {
			z.t.Errorf("%s over a damaged config: %d %q, %d requests", path, code(resp, err), say(resp, err), z.sent.Load())
		}
	}
}

// wantServed runs for a day with a config that can be used.
func (z *storedFuzz) wantServed() {
	z.t.Helper()
	if limit := z.wantStatus()["token_request_limit"]; limit != z.config.TokenRequestLimit {
		z.t.Errorf("the limit is %v, want %d", limit, z.config.TokenRequestLimit)
	}
	kept, _ := decodeToken([]byte(z.stored("token/x")), z.clock())
	kept = kept.forGeneration(z.config.Generation)
	wanted := kept.AccessToken == "" && kept.Failure == nil && checkTokenURL(z.config.tokenRequest().tokenURL) == nil
	z.tick()
	c := z.credential("x")
	c.mu.Lock()
	refresh := c.inFlight
	c.mu.Unlock()
	if refresh != nil {
		_ = refresh.wait(z.t.Context()) // its error is the next reader's
	}
	if s, now := c.snap.Load(), z.clock(); !s.live(now) && s.blocked(now) == nil {
		z.t.Error("the tick does not obtain a token")
	}
	served := z.serve()
	full := z.config.TokenRequestLimit > 0 && len(kept.Requests) >= z.config.TokenRequestLimit
	if n := z.sent.Load(); n > 1 || wanted && n == 0 && !full {
		z.t.Errorf("%d requests; one was wanted: %v", n, wanted)
	}
	z.restart()
	if again := z.serve(); again != served {
		z.t.Error("another token after a restart")
	}
	resp, err := z.write("rotate/x", nil)
	wantFit(z.t, say(resp, err))
	z.serve()
	z.wantStatus()

	before := z.sent.Load()
	z.moved.Add(24*3600 + 2)
	z.sim.SetFault(autopaysim.Fault{})
	usable := checkTokenURL(z.config.tokenRequest().tokenURL) == nil // else no request may be sent
	if z.serve() == "" && z.sent.Load() == before && usable {
		z.t.Error("blocked for more than a day")
	}
	z.wantStatus()
	if _, whole := decodeToken([]byte(z.stored("token/x")), z.clock()); z.sent.Load() > 0 && !whole {
		z.t.Errorf("the engine wrote what it would drop: %.500s", z.stored("token/x"))
	}
}

// serve reads the token and checks it. It returns "" if there is none.
func (z *storedFuzz) serve() string {
	z.t.Helper()
	resp, err := z.read("token/x")
	wantFit(z.t, say(resp, err))
	if status := code(resp, err); status != http.StatusOK {
		if status != 500 && status != 502 && status != 503 {
			z.t.Errorf("token: %d %q", status, say(resp, err))
		}
		return ""
	}
	const utc = "2006-01-02T15:04:05Z"
	now, served := z.clock(), resp.Data["access_token"].(string)
	expires, err1 := time.Parse(utc, resp.Data["expire_time"].(string))
	begun, err2 := time.Parse(utc, resp.Data["last_vault_rotation"].(string))
	period, ttl, life := resp.Data["rotation_period"].(int64), resp.Data["ttl"].(int64), expires.Sub(begun)
	for what, bad := range map[string]bool{
		"token":   served == "" || len(served) > 65536 || beyond('!', served) || beyond(' ', resp.Data["scope"].(string)),
		"time":    err1 != nil || err2 != nil || begun.After(now.Add(30*time.Second)) || life < 0 || life > 3650*24*time.Hour,
		"ttl":     ttl < 5 || ttl > max(period, 5) || period < 1,
		"dead":    !now.Before(expires.Add(-min(30*time.Second, life/20))),
		"origin":  served == z.entry.AccessToken && (z.entry.Generation != z.config.Generation || !expires.Equal(z.entry.ExpireTime)),
		"warning": strings.ContainsFunc(strings.Join(resp.Warnings, ""), notPrintable),
	} {
		if bad {
			z.t.Errorf("%s: served at %s: %.500v", what, now, resp.Data)
		}
	}
	return served
}

// wantStatus reads config and status, and checks that every wait ends.
func (z *storedFuzz) wantStatus() map[string]any {
	z.t.Helper()
	z.status("config/x")
	s := z.status("status/x")
	wantFit(z.t, s["last_error"].(string))
	at := func(field string) time.Time {
		when, err := time.Parse(time.RFC3339, fmt.Sprint(s[field]))
		if s[field] != nil && err != nil {
			z.t.Errorf("%s is %v", field, s[field])
		}
		return when
	}
	soon := z.clock().Add(24*time.Hour + time.Second)
	if at("next_attempt").After(soon) || at("next_rotation").After(soon) && at("next_rotation").After(at("expire_time")) ||
		at("last_error_time").After(z.clock()) || s["consecutive_failures"].(int) < 0 || s["state"] == "pending" && s["expire_time"] != nil {
		z.t.Errorf("status at %s: %.500v", z.clock(), s)
	}
	return s
}
