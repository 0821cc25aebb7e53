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
	ca := testCA(t)
	each := func(field string, values ...any) (all []fields) {
		for _, value := range values {
			all = append(all, fields{field: value})
		}
		return all
	}
	const (
		secretToo  = "requires client_secret in the same request"
		newline    = " must not end in a newline; check the file that it was read from"
		blank      = " must be printable text without leading or trailing spaces, tabs or newlines"
		broken     = "-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n"
		noBegin    = "----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
		noCA       = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
		privateKey = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
	)
	headers := strings.Replace(ca, "-----\n", "-----\nComment: x\n\n", 1)
	for says, all := range map[string][]fields{
		"client_id is required":      each("client_id", ""),
		"client_secret is required":  each("client_secret", ""),
		"client_id must be a string": each("client_id", 4711),
		"client_secret must be a string": each("client_secret",
			fields{"v": testSecret}, []any{testSecret}, 1.5e300, true),
		"audience must be a string":            each("audience", []any{"a"}),
		"client_id must be at most 4096 bytes": each("client_id", strings.Repeat("x", 4097)),
		"ca_cert must be at most":              each("ca_cert", strings.Repeat(ca, 1000)),
		"client_secret must be valid UTF-8":    each("client_secret", testSecret+"\ufffd"),
		"client_id" + newline:                  each("client_id", "id\n"),
		"client_secret" + newline:              each("client_secret", testSecret+"\n"),
		"client_secret" + blank: each("client_secret",
			"\ufeff"+testSecret, testSecret+"\u00a0", testSecret+"\u200b"),
		"token_url must be printable":       each("token_url", "https://autopay.example/\x00"),
		"audience must be printable":        each("audience", "https://a\nb"),
		"token_url must be an https URL":    each("token_url", "http://autopay.example/token"),
		"token_url must not contain a user": each("token_url", "https://me:"+testSecret+"@autopay.example/"),
		secretToo:                           append(each("token_url", "https://evil.example/"), each("ca_cert", ca)...),
		"ca_cert must contain PEM": each("ca_cert",
			"hello", " ", ca+"hello", broken+ca, noBegin+ca, headers, privateKey),
		"ca_cert contains a certificate that": each("ca_cert", noCA),
		"rotation_period must be 0": append(each("rotation_period", 4, "4015d"),
			fields{"request_timeout": 20, "audience": "x", "rotation_period": 3}), // one bad field of many
		"rotation_period must be a duration in whole seconds": each("rotation_period",
			"-1h", "7500ms", 7.5, testSecret, "1e3", "9999999999"),
		"rotation_period must be":              each("rotation_period", "99999999999999999999"),
		"request_timeout must be from 1 to 60": each("request_timeout", 0, "61s"),
		"token_request_limit must be from 0":   each("token_request_limit", -1),
		"token_request_limit must be a whole":  each("token_request_limit", 1.5, "0x1p4", "08", testSecret),
		"token_request_limit must be":          each("token_request_limit", 1e18),
		"verify must be true or false":         each("verify", testSecret),
		"Autopay refused the credential (400)": each("audience", "https://other.example"),
		"Autopay refused the credential (401): access_denied: Unauthorized; nothing was changed": each(
			"client_secret", "wrong"),
	} {
		for i, data := range all {
			t.Run(fmt.Sprintf("%s, %d", says, i), func(t *testing.T) {
				t.Parallel()
				e := configured(t, "request_timeout", 5)
				if _, given := data["client_secret"]; !given && says != secretToo && !strings.HasPrefix(says, "Autopay") {
					data["client_secret"] = testSecret
				}
				e.wantUnchanged(func() {
					resp, err := e.write("config", data)
					e.wantCode(http.StatusBadRequest, says)(resp, err)
					if strings.Contains(say(resp, err), "the file") != strings.HasSuffix(says, newline) {
						t.Errorf("got %q", say(resp, err))
					}
				})
				// The same at creation, beside the fields that are required.
				if says != secretToo {
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
		bad := e.wantCode(http.StatusBadRequest, "name may have up to 128 characters")
		for _, path := range []string{"config/", "token/", "status/"} {
			bad(e.read(path + name))
		}
		bad(e.write("rotate/"+name, nil))
	}
	all := []string{"Oslo_2", "a", "no.oslo-1", strings.Repeat("x", 128)}
	for _, name := range all {
		e.configure(name)
		e.token("token/" + name)
	}
	list := e.ok(e.do(t.Context(), logical.ListOperation, "config/", nil))
	if got := list.Data["keys"].([]string); !slices.Equal(got, all) {
		t.Errorf("listed are %v, want %v", got, all)
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
				"https://api-auth.autopay.io/oauth/other", "https://api-auth.autopay.io:443/oauth/token",
				"https://api-auth.autopay.io./oauth/token", "https://api-auth.autopay.io/oauth/token?a=b",
				"https://API-AUTH.autopay.io/oauth/token", "https://api-auth.autopay.io/oauth/../oauth/token",
			},
			"ca_cert": {"", ca + ca, ca + "\n", testCA(t)},
		} {
			for i, value := range values {
				data := fields{field: value, "Client_Secret": testSecret, "verify": i%2 == 0}
				e.wantCode(http.StatusBadRequest, "requires client_secret in the same request")(e.write("config", data))
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
			if changed && (verify == nil || verify == "") {
				e.want("status"+strings.TrimPrefix(path, "config"), "state", "ok") // not stored without verification
			}
		}
		if resp, err := e.read("token"); err == nil && resp.IsError() || err != nil && code(resp, err) < 502 {
			t.Errorf("afterwards a read gets %d %q", code(resp, err), say(resp, err))
		} else if e.stored("config/default") == before && (err != nil || resp.Data["access_token"] != token) {
			t.Errorf("the config is the same, the token is not: %v", err)
		}
		e.status("config")
		if strings.Contains(e.logs.String(), testSecret) {
			t.Error("the log shows the secret")
		}
	})
}
