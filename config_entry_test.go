package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestConfigRefusesBadFields(t *testing.T) {
	t.Parallel()
	type fields = map[string]any
	secretToo := func(field string, value any) fields { return fields{field: value, "client_secret": testSecret} }
	ca := testCA(t)
	for says, all := range map[string][]fields{
		"client_id is required":      {{"client_id": ""}},
		"client_secret is required":  {{"client_secret": ""}},
		"client_id must be a string": {{"client_id": 4711}},
		"client_secret must be a string": {
			{"client_secret": fields{"v": testSecret}}, {"client_secret": []any{testSecret}}, {"client_secret": 1.5e300}, {"client_secret": true},
		},
		"audience must be a string":            {{"audience": []any{"a"}}},
		"client_id must be at most 4096 bytes": {{"client_id": strings.Repeat("x", 4097)}},
		"ca_cert must be at most":              {secretToo("ca_cert", strings.Repeat(ca, 1000))},
		"client_secret must be valid UTF-8":    {{"client_secret": testSecret + "\ufffd"}},
		"client_id must not end in a newline (does the file that it came from end in one?)":     {{"client_id": "id\n"}},
		"client_secret must not end in a newline (does the file that it came from end in one?)": {{"client_secret": testSecret + "\n"}},
		"client_secret must be printable text without leading or trailing spaces, tabs or newlines": {
			{"client_secret": "\ufeff" + testSecret}, {"client_secret": testSecret + "\u00a0"}, {"client_secret": testSecret + "\u200b"},
		},
		"token_url must be printable":                {secretToo("token_url", "https://autopay.example/\x00")},
		"audience must be printable":                 {{"audience": "https://a\nb"}},
		"token_url must be an https URL":             {secretToo("token_url", "http://autopay.example/token")},
		"token_url must not contain a user name":     {secretToo("token_url", "https://me:"+testSecret+"@autopay.example/")},
		"requires client_secret in the same request": {{"token_url": "https://evil.example/"}, {"ca_cert": ca}},
		"ca_cert must contain PEM certificates": {
			secretToo("ca_cert", "hello"), secretToo("ca_cert", " "), secretToo("ca_cert", ca+"hello"),
			secretToo("ca_cert", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		},
		"ca_cert contains a certificate that can't be parsed": {secretToo("ca_cert", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
		"rotation_period must be 0": {
			{"rotation_period": 4}, {"rotation_period": "4015d"}, {"request_timeout": 20, "audience": "x", "rotation_period": 3}, // one bad field of many
		},
		"rotation_period must be a duration in whole seconds": {
			{"rotation_period": "-1h"}, {"rotation_period": "7500ms"}, {"rotation_period": 7.5}, {"rotation_period": testSecret}, {"rotation_period": "1e3"}, {"rotation_period": "9999999999"},
		},
		"rotation_period must be":              {{"rotation_period": "99999999999999999999"}},
		"request_timeout must be from 1 to 60": {{"request_timeout": 0}, {"request_timeout": "61s"}},
		"token_request_limit must be from 0":   {{"token_request_limit": -1}},
		"token_request_limit must be":          {{"token_request_limit": 1e18}},
		"token_request_limit must be a whole number": {
			{"token_request_limit": 1.5}, {"token_request_limit": "0x1p4"}, {"token_request_limit": "08"}, {"token_request_limit": testSecret},
		},
		"verify must be true or false": {{"verify": testSecret}},
		"Autopay refused the credential (401): access_denied: Unauthorized; nothing was changed": {{"client_secret": "wrong"}},
		"Autopay refused the credential (400)":                                                   {{"audience": "https://other.example"}},
	} {
		for i, data := range all {
			t.Run(fmt.Sprintf("%s, %d", says, i), func(t *testing.T) {
				t.Parallel()
				e := configured(t, "request_timeout", 5)
				e.wantUnchanged(func() {
					resp, err := e.write("config", data)
					if text := say(resp, err); code(resp, err) != http.StatusBadRequest || !strings.Contains(text, says) || strings.Contains(text, "the file") != strings.Contains(says, "the file") {
						t.Errorf("got %d %q, want a 400 that says %q", code(resp, err), text, says)
					}
				})
				// The same at creation, beside the fields that are required.
				if !strings.Contains(says, "requires client_secret") {
					create := withSecret()
					maps.Copy(create, data)
					e.wantCode(http.StatusBadRequest)(e.write("config/new", create))
				}
				if e.stored("config/new")+e.stored("token/new") != "" {
					t.Error("a refused creation left something")
				}
				if strings.Contains(e.logs.String(), testSecret) {
					t.Error("the log shows the secret")
				}
			})
		}
	}
}

func TestConfigNames(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	for _, name := range []string{"-x", "x-", "a/b", "a b", "ä", "a/", ".", "..", "a..b", strings.Repeat("x", 129)} {
		for _, path := range []string{"config/", "token/", "status/", "rotate/"} {
			var op logical.Operation = logical.ReadOperation
			if path == "rotate/" {
				op = logical.UpdateOperation
			}
			resp, err := e.do(t.Context(), op, path+name, nil)
			if code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), "name may have up to 128 characters") {
				t.Errorf("%s%s: %d %q, want a 400 that names the rule", path, name, code(resp, err), say(resp, err))
			}
		}
	}
	for _, name := range []string{"a", "Oslo_2", "no.oslo-1", strings.Repeat("x", 128)} {
		e.configure(name)
		e.token("token/" + name)
	}
	all := []string{"Oslo_2", "a", "no.oslo-1", strings.Repeat("x", 128)}
	for _, page := range []struct {
		query map[string]any // as OpenBao's clients send it
		want  []string
	}{
		{nil, all},
		{fields{"limit": 2}, all[:2]},
		{fields{"after": "a"}, all[2:]},
		{fields{"after": "a", "limit": 1}, all[2:3]},
		{fields{"after": "b", "limit": 9}, all[2:]},
		{fields{"limit": 0}, all},
	} {
		resp, err := e.do(t.Context(), logical.ListOperation, "config/", page.query)
		if err != nil || !slices.Equal(resp.Data["keys"].([]string), page.want) {
			t.Errorf("list %v: %v %v, want %v", page.query, resp, err, page.want)
		}
	}
}

// TestAnotherSpellingIsAChange spells the stored token_url and ca_cert in other ways.
// Each counts as a change, which must bring client_secret.
func TestAnotherSpellingIsAChange(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	ca := testCA(t)
	e.configure("default", "ca_cert", ca)
	e.wantUnchanged(func() {
		for field, values := range map[string][]string{
			"token_url": {
				"https://api-auth.autopay.io/oauth/other", "https://api-auth.autopay.io:443/oauth/token", "https://api-auth.autopay.io./oauth/token",
				"https://api-auth.autopay.io/oauth/token?a=b", "https://API-AUTH.autopay.io/oauth/token", "https://api-auth.autopay.io/oauth/../oauth/token",
			},
			"ca_cert": {"", ca + ca, ca + "\n", testCA(t)},
		} {
			for i, value := range values {
				resp, err := e.write("config", fields{field: value, "Client_Secret": testSecret, "verify": i%2 == 0})
				if code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), "requires client_secret in the same request") {
					t.Errorf("%s %q: %v %v", field, value, resp, err)
				}
			}
		}
	})
	e.wantRequests(1)
}

// FuzzConfigFields writes the fields of a JSON object to config, with any text in one
// of them, over a working credential and as a new one.
func FuzzConfigFields(f *testing.F) {
	names := []string{"", fieldVerify}
	for _, f := range configFields {
		names = append(names, f.name)
	}
	f.Fuzz(func(t *testing.T, object string, exact bool, field uint, text string) {
		fields, name := fields{}, names[field%uint(len(names))]
		from := json.NewDecoder(strings.NewReader(object))
		if exact {
			from.UseNumber()
		}
		if err := from.Decode(&fields); fields == nil || err != nil && name == "" {
			t.Skip("not an object")
		}
		if name != "" {
			fields[name] = text
		}
		for name := range fields {
			if strings.Contains(name, testSecret) {
				t.Skip("the name of an unknown field is shown")
			}
		}
		e := configured(t)
		token, before := e.token("token")["access_token"], e.stored("config/default")
		for _, path := range []string{"config/new", "config/default"} {
			resp, err := e.write(path, fields) // checks that the secret is not shown
			status, stored := code(resp, err), e.stored(path)
			changed := stored != "" && stored != before
			switch {
			case resp == nil && err == nil: // 204
			case status == http.StatusOK && len(resp.Warnings) > 0:
			case status != http.StatusBadRequest && status != http.StatusServiceUnavailable:
				t.Fatalf("%s: %d %q", path, status, say(resp, err))
			case changed || status == http.StatusBadRequest && e.stored("token/new") != "":
				t.Errorf("%s: a %d, and storage changed", path, status)
			}
			if _, err := decodeConfig([]byte(stored)); changed && err != nil {
				t.Fatalf("%s: stored, and damaged: %v", path, err)
			}
			verify := fields[fieldVerify]
			if changed && (verify == nil || verify == "") && e.status("status" + strings.TrimPrefix(path, "config"))["state"] != "ok" {
				t.Errorf("%s: stored without verification", path)
			}
		}
		if resp, err := e.read("token"); err == nil && resp.IsError() || err != nil && code(resp, err) < 502 {
			t.Errorf("afterwards a read gets %d %q", code(resp, err), say(resp, err))
		} else if e.stored("config/default") == before && (err != nil || resp.Data["access_token"] != token) {
			t.Errorf("the config is the same, the token is not: %v", err)
		}
		bare := &logical.Request{Operation: logical.ReadOperation, Path: "config", Storage: e.storage}
		if resp, err := e.HandleRequest(t.Context(), bare); code(resp, err) != http.StatusOK {
			t.Errorf("afterwards the config is a %d %q", code(resp, err), say(resp, err))
		}
		if strings.Contains(e.logs.String(), testSecret) {
			t.Error("the log shows the secret")
		}
	})
}
