package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// The seeds are in testdata/fuzz, named by what they are about.

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// beyond tells whether s holds a character that is not from first to ~.
func beyond(first rune, s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < first || r > '~' })
}

// wantFit checks a text that people are shown.
func wantFit(t *testing.T, text string) {
	t.Helper()
	if strings.ContainsFunc(text, notPrintable) || len([]rune(text)) > 800 {
		t.Errorf("a text is not fit to show: %.500q", text)
	}
}

// FuzzAnswer gives the exchange any answer of a provider. In its body LONG is
// one byte more than a token may have, SECRET the client secret and SENT the
// secret as the request quoted it, both inside of a JSON string.
func FuzzAnswer(f *testing.F) {
	const (
		secret = `canary"secret<4711`
		// All that is said of a 200.
		ours = "Autopay sent a malformed answer: its media type is not application/json; it is larger than 1 MiB; " +
			"access_token has the wrong type; token_type has the wrong type; scope has the wrong type; it is not a JSON object; " +
			"access_token must be 1 to 65536 printable ASCII characters without spaces; token_type must be Bearer; " +
			"scope must be at most 65536 printable ASCII characters; expires_in must be a whole number of seconds from 1 to ten years"
	)
	quote := func(s string) string {
		quoted, _ := json.Marshal(s)
		return string(quoted[1 : len(quoted)-1])
	}
	fill := strings.NewReplacer("LONG", strings.Repeat("x", 65537), "SECRET", quote(secret), "SENT", quote(quote(secret)))
	f.Fuzz(func(t *testing.T, status int, media, retryAfter, location, body string) {
		status, body = max(status, -status, 0)%1000, fill.Replace(body)
		answerTo := func(body string) (tokenAnswer, *exchangeError) {
			c := &client{now: func() time.Time { return start2000 }, transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{})
				header := http.Header{"Content-Type": {media}, "Retry-After": {retryAfter}, "Location": {location}}
				return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
			})}
			return c.exchange(t.Context(), tokenRequest{
				tokenURL: defaultTokenURL, clientID: testID, clientSecret: secret, timeout: time.Minute,
			})
		}
		got, fault := answerTo(body)
		if fault == nil {
			var said struct {
				Seconds float64 `json:"expires_in"`
			}
			_ = json.Unmarshal([]byte(body), &said)
			if n := len(got.accessToken); status != 200 || n < 1 || n > 65536 || beyond('!', got.accessToken) || beyond(' ', got.scope) ||
				got.lifetime < time.Second || got.lifetime > 3650*24*time.Hour || got.lifetime%time.Second != 0 || got.lifetime.Seconds() != said.Seconds {
				t.Errorf("taken from a %d: token %.99q, scope %.99q, lifetime %s", status, got.accessToken, got.scope, got.lifetime)
			}
			return
		}
		wantFit(t, fault.text)
		if strings.Contains(fault.text, secret) || strings.Contains(fault.text, quote(secret)) {
			t.Errorf("the secret is shown: %q", fault.text)
		}
		refused := status/100 == 4 && status != 408 && status != 429
		if fault.noToken != (status/100 != 2) || fault.refused != refused || fault.retryAfter < 0 || fault.retryAfter > time.Hour {
			t.Errorf("a %d is understood as %+v", status, fault)
		}
		// Nothing of the raw answer is shown but what Autopay says for people to read.
		meant := ours
		if status != http.StatusOK {
			_, mute := answerTo("")
			var said struct {
				Error       any `json:"error"`
				Description any `json:"error_description"`
			}
			_ = json.Unmarshal([]byte(body), &said)
			meant = mute.text
			for _, v := range []any{said.Error, said.Description} {
				if text, ok := v.(string); ok {
					meant += "\n" + text + "\n" + cleanText(text, secret)
				}
			}
		}
		for i := range max(len(fault.text)-15, 0) {
			if run := fault.text[i : i+16]; strings.Contains(body, run) && !strings.Contains(meant, run) {
				t.Fatalf("%q of the raw answer is shown: %q", run, fault.text)
			}
		}
	})
}

// FuzzConfigFields writes any fields to config, over a working credential and
// as a new one: those of a JSON object, and any text in one of them.
func FuzzConfigFields(f *testing.F) {
	names := []string{"", fieldVerify}
	for _, f := range configFields {
		names = append(names, f.name)
	}
	f.Fuzz(func(t *testing.T, object string, exact bool, field uint, text string) {
		fields, name := map[string]any{}, names[field%uint(len(names))]
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
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
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
				t.Errorf("%s: stored without a proof", path)
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

// stored is what storage holds at a key; "" if nothing.
func (e *engine) stored(key string) string {
	entry, err := e.storage.InmemStorage.Get(e.t.Context(), key)
	if err != nil || entry == nil {
		return ""
	}
	return string(entry.Value)
}
