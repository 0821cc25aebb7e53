package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestConfigUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "rotation_period", "8h")
		token := e.token("token")["access_token"]

		// A write that changes nothing that a token is issued for sends no request.
		for _, data := range []fields{
			{"rotation_period": 3600.0},
			{"rotation_period": "2h"},
			{"request_timeout": "20s"},
			{"token_request_limit": "50"},
			{"token_url": ""},
			{"token_url": defaultTokenURL},
			{"audience": defaultAudience},
			{"audience": ""},
			{"ca_cert": ""},
		} {
			e.ok(e.write("config", data))
		}
		e.want("token", "access_token", token)
		e.wantRequests(1)
		want := fields{
			"client_id": testID, "token_url": defaultTokenURL, "audience": defaultAudience, "ca_cert": "",
			"rotation_period": int64(7200), "rotation_schedule": "", "request_timeout": int64(20),
			"token_request_limit": 50, "client_secret_updated_time": "2000-01-01T00:00:00Z",
		}
		if got := e.status("config"); !maps.Equal(got, want) {
			t.Errorf("config is %v, want %v", got, want)
		}

		// A rotation_period applies to the token in hand at once.
		e.want("token", "rotation_period", int64(7200), "ttl", int64(7200))
		time.Sleep(2*time.Hour + time.Second)
		e.wantRequests(2)

		// A new secret is verified, and its token becomes the cached one.
		e.sim.SetClient(testID, "another-secret")
		e.ok(e.write("config", fields{"client_secret": "another-secret"}))
		e.wantRequests(3)
		e.token("token")
		e.wantRequests(3)

		// What can't be verified is not stored, and the answer says how to store it.
		e.sim.SetFault(fault("refused"))
		e.wantUnchanged(func() {
			e.wantCode(http.StatusServiceUnavailable, "verify=false")(e.write("config", fields{"client_id": "second"}))
		})
	})
}

// TestConfigListShowsHealth: key_info comes from memory. A list reads storage once,
// however many credentials there are.
func TestConfigListShowsHealth(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		for i := range 1000 {
			e.configure(fmt.Sprintf("pending-%04d", i), "verify", false)
		}
		e.put("config/damaged", "{")
		e.put("token/damaged", e.stored("token/default"))
		e.restart()
		synctest.Wait() // until all are loaded
		e.put("config/unloaded", e.stored("config/default"))

		ok := fields{"state": "ok", "expire_time": "2000-01-02T00:00:00Z"}
		pending, failing := fields{"state": "pending"}, fields{"state": "failing"}
		for page, test := range map[string]struct {
			query fields
			keys  int
			want  fields
		}{
			"all":      {nil, 1003, fields{"default": ok, "damaged": failing, "pending-0999": pending}},
			"limit":    {fields{"limit": 3}, 3, fields{"default": ok, "damaged": failing, "pending-0000": pending}},
			"after":    {fields{"after": "pending-0998"}, 2, fields{"pending-0999": pending}},
			"both":     {fields{"after": "pending-0997", "limit": 1}, 1, fields{"pending-0998": pending}},
			"unloaded": {fields{"after": "pending-0999"}, 1, fields{}},
		} {
			reads := e.storage.reads.Load()
			resp := e.ok(e.do(t.Context(), logical.ListOperation, "config/", test.query))
			if n := len(resp.Data["keys"].([]string)); n != test.keys {
				t.Errorf("%s: %d keys, want %d", page, n, test.keys)
			}
			if got := e.storage.reads.Load() - reads; got != 1 {
				t.Errorf("%s: %d reads of storage, want 1", page, got)
			}
			info, _ := resp.Data["key_info"].(fields)
			maps.DeleteFunc(info, func(name string, _ any) bool {
				return test.want[name] == nil && strings.HasPrefix(name, "pending") // those in between
			})
			if len(info)+len(test.want) > 0 && !reflect.DeepEqual(info, test.want) {
				t.Errorf("%s: key_info %v, want %v", page, info, test.want)
			}
		}
	})
}

// TestTheSameWriteChangesNothing: Terraform writes every field at each apply, and null
// for those that are not set. client_secret_updated_time tells when the stored secret
// last became another one.
func TestTheSameWriteChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Clients: map[string]string{testID: testSecret, "second": testSecret}})
		again := []any{
			"rotation_schedule", "0 3,15 * * *", "request_timeout", 20,
			"audience", nil, "verify", nil, "rotation_period", nil, "ca_cert", nil,
		}
		e.configure("default", again...)
		time.Sleep(16 * time.Hour)
		writes, before := e.storage.writes.Load(), e.stored("config/default")
		e.configure("default", again...)
		if n := e.storage.writes.Load() - writes; n != 0 || e.stored("config/default") != before {
			t.Errorf("%d writes", n)
		}
		e.wantRequests(2) // the first, and that of 15:00

		const field = "client_secret_updated_time"
		e.configure("default", "client_id", "second", "rotation_period", "1h")
		_, _ = e.write("config", fields{"client_secret": "wrong"}) // Autopay refuses it
		e.want("config", field, "2000-01-01T00:00:00Z")
		time.Sleep(time.Second / 2)
		e.configure("default", "client_secret", "unverified", "verify", false)
		e.want("config", field, "2000-01-01T16:00:00Z")
		e.restart()
		e.want("config", field, "2000-01-01T16:00:00Z")
	})
}

// TestConfigQuotesNothing gives config paths fields that they don't take.
func TestConfigQuotesNothing(t *testing.T) {
	t.Parallel()
	e := configured(t)
	for path, op := range map[string]logical.Operation{
		"config": logical.ReadOperation, "config/default": logical.DeleteOperation, "config/": logical.ListOperation,
	} {
		e.wantCode(http.StatusBadRequest)(e.do(t.Context(), op, path, fields{"client_secret": []any{testSecret}}))
	}
	e.wantUnchanged(func() {
		inBody := fields{"name": "oslo", "rotation_period": 3600}
		e.wantCode(http.StatusBadRequest, "write to config/NAME on this mount")(e.write("config", inBody))
	})
	resp := e.ok(e.write("config", fields{"audience": "", "client_secrte": fields{"x": testSecret}}))
	if len(resp.Warnings) != 1 || !strings.Contains(resp.Warnings[0], "client_secrte") {
		t.Errorf("an unknown field: %q, want one warning", resp.Warnings)
	}
}

func TestConfigDamagedInStorage(t *testing.T) {
	t.Parallel()
	for name, stored := range map[string]string{
		"no JSON":       testSecret,
		"truncated":     `{"client_id":"x","client_secret":"` + testSecret,
		"nested":        strings.Repeat(`{"client_id":`, 200_000) + "1" + strings.Repeat("}", 200_000),
		"other types":   `{"client_id":1,"client_secret":"` + testSecret + `"}`,
		"no generation": `{"client_id":"x","client_secret":"` + testSecret + `","request_timeout":10}`,
		"no secret":     `{"client_id":"x","request_timeout":10,"generation":"g"}`,
		"second wrong type": `{"client_id":"x","client_secret":"` + testSecret +
			`","generation":"g","request_timeout":"x","token_url":5}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := configured(t)
			token := e.stored("token/default")
			e.put("config/default", stored)
			e.InvalidateKey(t.Context(), "config/default")
			// Refused writes over it do not hide the damage, and keep the token: the config may be restored.
			e.wantCode(http.StatusBadRequest)(e.write("config", fields{"request_timeout": 10}))
			e.wantCode(http.StatusBadRequest)(e.write("config", fields{"client_id": testID, "client_secret": "wrong"}))
			if got := e.stored("token/default"); got != token {
				t.Errorf("stored is now %s", got)
			}
			damaged := e.wantCode(500, "write it again with client_id and client_secret, or delete it")
			for _, path := range []string{"config", "token", "status"} {
				damaged(e.read(path))
			}
			e.wantMetrics("damaged", map[string]float64{
				"credential_state default failing": 1, "token_reads_total default error": 1, "token_request_limit default": absent,
			})
			e.configure("default")
			e.token("token")
			e.put("config/y", stored)
			e.forget("y")
		})
	}
}

func TestConfigStorageFails(t *testing.T) {
	t.Parallel()
	e := configured(t)
	e.storage.failOn("", "", errors.New("it does not work"))
	for op, path := range map[logical.Operation]string{
		logical.ReadOperation: "config/other", logical.UpdateOperation: "config",
		logical.DeleteOperation: "config", logical.ListOperation: "config/",
	} {
		broken := e.wantCode(http.StatusInternalServerError, "does not work")
		broken(e.do(t.Context(), op, path, fields{"audience": "https://x.example"}))
	}
	e.token("token") // is served from memory
}

func TestConfigCACert(t *testing.T) {
	t.Parallel()
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
	srv := httptest.NewTLSServer(sim)
	t.Cleanup(srv.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	e := newEngine(t, autopaysim.Options{})
	e.opts.transport = nil // the real one
	e.restart()
	create := withSecret()
	create["token_url"], create["request_timeout"] = srv.URL+autopaysim.TokenPath, 60
	e.wantCode(http.StatusServiceUnavailable, "signed by an unknown authority")(e.write("config", create))
	create["ca_cert"] = ca
	e.ok(e.write("config", create))
	if n := sim.Issued(testID); n != 1 {
		t.Errorf("%d tokens issued, want 1", n)
	}
}
