package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestStoredByV010 loads what v0.1.0 stored, and what a later version may add: the
// same tokens go on, without a request.
func TestStoredByV010(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][2]string{
		"as it was stored":               {},
		"with what a later version adds": {"{", `{"introduced_later":{"a":[1]},`},
		"with a rule that came later":    {`"request_timeout":10`, `"request_timeout":3600`},
		"with a number of a later form":  {`"token_request_limit":100`, `"token_request_limit":{"per_day":100}`},
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
				e.put(filepath.ToSlash(key), strings.Replace(string(stored), change[0], change[1], 1))
			}
			time.Sleep(3 * time.Minute) // the entries were stored two minutes into 2000
			e.start()
			e.want("status/unproved", "state", "pending")
			for name, want := range map[string]string{"plain": "2000-01-01T00:02:00Z", "full": "2000-01-01T00:00:00Z"} {
				if got := e.ok(e.read("token/" + name)).Data["last_vault_rotation"]; got != want {
					t.Errorf("%s: the token of %s, want that of %s", name, got, want)
				}
			}
			e.want("config/full", "client_secret_updated_time", nil, "rotation_period", int64(43200), "token_request_limit", 7)
			if ca := e.status("config/full")["ca_cert"].(string); !strings.HasPrefix(ca, "-----BEGIN") {
				t.Errorf("ca_cert is %q", ca)
			}
			e.want("status/plain", "token_requests_24h", 2)
			// The defaults, where the stored numbers can't be used.
			e.want("config/plain", "request_timeout", int64(10), "token_request_limit", 100)
		})
	}
}

// storedFuzz is one run of FuzzStoredEntries.
type storedFuzz struct {
	*engine
	config configEntry // as far as the entries can be read
	entry  tokenEntry
	sent   atomic.Int64 // requests that left
}

// FuzzStoredEntries starts the engine on any bytes at config/x and token/x, such as
// entries of other versions or damaged ones. Autopay may be down for the first day.
func FuzzStoredEntries(f *testing.F) {
	f.Fuzz(func(t *testing.T, config, token []byte, down bool) {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Until(time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC))) // for which the seeds are written
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
			z.engine = newEngine(t, autopaysim.Options{})
			if down {
				z.sim.SetFault(status(503))
			}
			inner := z.opts.transport
			z.opts.transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				z.sent.Add(1)
				return inner.RoundTrip(r)
			})
			z.put("config/x", string(config))
			z.put("token/x", string(token))
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
			z.configure("x", "token_url", "", "audience", "", "ca_cert", "",
				"rotation_period", 0, "request_timeout", 10, "token_request_limit", 0)
			z.token("token/x") // live at Autopay
			z.wantStatus()
			synctest.Wait()
			if strings.Contains(z.logs.String(), "canary") {
				t.Error("the log shows a secret or a token")
			}
		})
	})
}

// wantDamaged checks that a damaged config is a 500 everywhere and sends no request.
func (z *storedFuzz) wantDamaged() {
	z.t.Helper()
	z.tick()
	damaged := func(resp *logical.Response, err error) {
		wantFit(z.t, say(resp, err))
		z.wantCode(500, "write it again with client_id and client_secret, or delete it")(resp, err)
	}
	damaged(z.read("config/x"))
	damaged(z.read("token/x"))
	damaged(z.read("status/x"))
	damaged(z.write("rotate/x", nil))
	if n := z.sent.Load(); n > 0 {
		z.t.Errorf("%d requests with a damaged config", n)
	}
}

// wantServed runs for a day with a config that can be used.
func (z *storedFuzz) wantServed() {
	z.t.Helper()
	limit := z.config.TokenRequestLimit
	if got := z.wantStatus()["token_request_limit"]; got != limit {
		z.t.Errorf("the limit is %v, want %d", got, limit)
	}
	kept, _ := decodeToken([]byte(z.stored("token/x")), time.Now())
	kept = kept.forGeneration(z.config.Generation)
	usable := checkTokenURL(z.config.tokenRequest().tokenURL) == nil // else no request may be sent
	wanted := kept.AccessToken == "" && kept.Failure == nil && usable && (limit == 0 || len(kept.Requests) < limit)
	z.tick()
	synctest.Wait()
	served := z.serve()
	if n := z.sent.Load(); n > 1 || wanted && n == 0 {
		z.t.Errorf("%d requests; one was wanted: %v", n, wanted)
	}
	z.restart()
	if z.serve() != served {
		z.t.Error("another token after a restart")
	}
	wantFit(z.t, say(z.write("rotate/x", nil)))
	z.serve()
	z.wantStatus()

	z.clean(z.t.Context())
	z.sim.SetFault(autopaysim.Fault{})
	before := z.sent.Load()
	time.Sleep(24*time.Hour + 2*time.Second)
	z.start()
	if z.serve() == "" && z.sent.Load() == before && usable {
		z.t.Error("blocked for more than a day")
	}
	z.wantStatus()
	stored := z.stored("token/x")
	if _, whole := decodeToken([]byte(stored), time.Now()); z.sent.Load() > 0 && !whole {
		z.t.Errorf("the engine wrote what it would drop: %.500s", stored)
	}
}

// serve reads the token and checks it. It returns "" if there is none.
func (z *storedFuzz) serve() string {
	z.t.Helper()
	resp, err := z.read("token/x")
	wantFit(z.t, say(resp, err))
	if got := code(resp, err); got != http.StatusOK {
		if got != 500 && got != 502 && got != 503 {
			z.t.Errorf("token: %d %q", got, say(resp, err))
		}
		return ""
	}
	const utc = "2006-01-02T15:04:05Z"
	data, now := resp.Data, time.Now()
	token := data["access_token"].(string)
	expires, err1 := time.Parse(utc, data["expire_time"].(string))
	begun, err2 := time.Parse(utc, data["last_vault_rotation"].(string))
	period, ttl, life := data["rotation_period"].(int64), data["ttl"].(int64), expires.Sub(begun)
	old := token == z.entry.AccessToken
	for what, bad := range map[string]bool{
		"token":   token == "" || len(token) > 65536 || beyond('!', token) || beyond(' ', data["scope"].(string)),
		"time":    err1 != nil || err2 != nil || begun.After(now.Add(30*time.Second)) || life < 0 || life > 3650*24*time.Hour,
		"ttl":     ttl < 5 || ttl > max(period, 5) || period < 1,
		"dead":    !now.Before(expires.Add(-min(30*time.Second, life/20))),
		"origin":  old && (z.entry.Generation != z.config.Generation || !expires.Equal(z.entry.ExpireTime)),
		"warning": strings.ContainsFunc(strings.Join(resp.Warnings, ""), notPrintable),
	} {
		if bad {
			z.t.Errorf("%s: served at %s: %.500v", what, now, data)
		}
	}
	return token
}

// wantStatus reads config and status, and checks that every wait ends.
func (z *storedFuzz) wantStatus() fields {
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
	soon := time.Now().Add(24*time.Hour + time.Second)
	next, late := at("next_rotation"), at("next_attempt").After(soon)
	if late || next.After(soon) && next.After(at("expire_time")) || at("last_error_time").After(time.Now()) ||
		s["consecutive_failures"].(int) < 0 || s["state"] == "pending" && s["expire_time"] != nil {
		z.t.Errorf("status at %s: %.500v", time.Now(), s)
	}
	return s
}
