package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
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
			if resp, err := e.write("config", data); err != nil || resp.IsError() {
				t.Fatal(data, resp, err)
			}
		}
		e.want("token", "access_token", token)
		e.wantRequests(1)
		want := fields{
			"client_id": testID, "token_url": defaultTokenURL, "audience": defaultAudience, "ca_cert": "",
			"rotation_period": int64(7200), "rotation_schedule": "", "request_timeout": int64(20), "token_request_limit": 50,
			"client_secret_updated_time": "2000-01-01T00:00:00Z",
		}
		if got := e.status("config"); !maps.Equal(got, want) {
			t.Errorf("config is %v, want %v", got, want)
		}

		// A rotation_period applies to the token in hand at once.
		if got := e.token("token"); got["rotation_period"] != int64(7200) || got["ttl"] != int64(7200) {
			t.Errorf("rotation_period %v, ttl %v, want 7200", got["rotation_period"], got["ttl"])
		}
		time.Sleep(2*time.Hour + time.Second)
		e.wantRequests(2)

		// A new secret is verified, and its token becomes the cached one.
		e.sim.SetClient(testID, "another-secret")
		if resp, err := e.write("config", fields{"client_secret": "another-secret"}); err != nil || resp.IsError() {
			t.Fatal(resp, err)
		}
		e.wantRequests(3)
		e.token("token")
		e.wantRequests(3)

		// What can't be verified is not stored, and the answer says how to store it.
		e.sim.SetFault(fault("refused"))
		e.wantUnchanged(func() {
			resp, err := e.write("config", fields{"client_id": "second"})
			if code(resp, err) != http.StatusServiceUnavailable || !strings.Contains(say(resp, err), "verify=false") {
				t.Errorf("got %d %q", code(resp, err), say(resp, err))
			}
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
		e.restart()
		synctest.Wait() // until all are loaded
		e.put("config/unloaded", e.stored("config/default"))

		ok := fields{"state": "ok", "expire_time": "2000-01-02T00:00:00Z"}
		pending := fields{"state": "pending"}
		for page, test := range map[string]struct {
			query map[string]any
			keys  int
			want  map[string]any
		}{
			"all":      {nil, 1003, fields{"default": ok, "damaged": fields{"state": "failing"}, "pending-0999": pending}},
			"limit":    {fields{"limit": 3}, 3, fields{"default": ok, "pending-0000": pending}},
			"after":    {fields{"after": "pending-0998"}, 2, fields{"pending-0999": pending}},
			"unloaded": {fields{"after": "pending-0999"}, 1, nil},
		} {
			reads := e.storage.reads.Load()
			resp, err := e.do(t.Context(), logical.ListOperation, "config/", test.query)
			if err != nil || len(resp.Data["keys"].([]string)) != test.keys {
				t.Fatalf("%s: %v %v, want %d keys", page, resp, err, test.keys)
			}
			if got := e.storage.reads.Load() - reads; got != 1 {
				t.Errorf("%s: %d reads of storage, want 1", page, got)
			}
			info, _ := resp.Data["key_info"].(map[string]any)
			for name, want := range test.want {
				if !reflect.DeepEqual(info[name], want) {
					t.Errorf("%s: key_info of %s is %v, want %v", page, name, info[name], want)
				}
			}
			for name := range info {
				if !slices.Contains(resp.Data["keys"].([]string), name) || name == "unloaded" {
					t.Errorf("%s: key_info of %s, want none", page, name)
				}
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
		again := []any{"rotation_schedule", "0 3,15 * * *", "request_timeout", 20, "audience", nil, "verify", nil, "rotation_period", nil, "ca_cert", nil}
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
		resp, err := e.write("config", fields{"name": "oslo", "rotation_period": 3600})
		if code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), "write to config/NAME on this mount") {
			t.Errorf("a name in the body: %v %v", resp, err)
		}
	})
	resp, err := e.write("config", fields{"audience": "", "client_secrte": fields{"x": testSecret}})
	if err != nil || len(resp.Warnings) != 1 || !strings.Contains(resp.Warnings[0], "client_secrte") {
		t.Errorf("an unknown field: %v %v, want one warning", resp, err)
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
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, autopaysim.Options{})
			e.put("config/x", stored)
			// Refused writes over it do not hide the damage.
			e.wantCode(http.StatusBadRequest)(e.write("config/x", fields{"request_timeout": 10}))
			e.wantCode(http.StatusBadRequest)(e.write("config/x", fields{"client_id": testID, "client_secret": "wrong"}))
			for _, path := range []string{"config/x", "token/x", "status/x"} {
				resp, err := e.read(path)
				if code(resp, err) != http.StatusInternalServerError || !strings.Contains(say(resp, err), "write it again with client_id and client_secret, or delete it") {
					t.Errorf("%s: %d %q", path, code(resp, err), say(resp, err))
				}
			}
			e.metricsHold("damaged", map[string]float64{
				`autopay_credential_state{name="x",state="failing"}`: 1, `autopay_token_reads_total{name="x",outcome="error"}`: 1, `autopay_token_request_limit{name="x"}`: -1,
			})
			e.configure("x")
			e.token("token/x")
			e.put("config/y", stored)
			if resp, err := e.delete("config/y"); resp != nil || err != nil || e.stored("config/y") != "" {
				t.Errorf("delete: %v %v, want a 204", resp, err)
			}
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
		resp, err := e.do(t.Context(), op, path, fields{"audience": "https://x.example"})
		if code(resp, err) != http.StatusInternalServerError || !strings.Contains(say(resp, err), "does not work") {
			t.Errorf("%s: %d %q, want a 500 that names the operation", op, code(resp, err), say(resp, err))
		}
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
	url := srv.URL + autopaysim.TokenPath
	resp, err := e.write("config", fields{"client_id": testID, "client_secret": testSecret, "token_url": url, "request_timeout": 60})
	if code(resp, err) != http.StatusServiceUnavailable || !strings.Contains(say(resp, err), "signed by an unknown authority") {
		t.Errorf("without ca_cert: %d %q", code(resp, err), say(resp, err))
	}
	e.configure("default", "token_url", url, "ca_cert", ca, "request_timeout", 60)
	if n := sim.Issued(testID); n != 1 {
		t.Errorf("%d tokens issued, want 1", n)
	}
}

// TestRequestTimeoutIsUsed: the exchange ends when request_timeout says.
func TestRequestTimeoutIsUsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false, "request_timeout", 3)
		e.sim.SetFault(fault("hang"))
		begun := time.Now()
		e.wantCode(http.StatusServiceUnavailable)(e.read("token"))
		if took := time.Since(begun); took != 3*time.Second {
			t.Errorf("the exchange took %s, want 3 s", took)
		}
	})
}

// TestSecretsAreMarkedSensitive, so that Vault's UI and its OpenAPI document know.
func TestSecretsAreMarkedSensitive(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	for _, field := range []*framework.FieldSchema{e.Route("config").Fields[fieldClientSecret], tokenFields()["access_token"]} {
		if field.DisplayAttrs == nil || !field.DisplayAttrs.Sensitive {
			t.Errorf("not marked: %s", field.Description)
		}
	}
}
