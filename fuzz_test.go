package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// The seeds are in testdata/fuzz, named by what they are about.

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// beyond reports whether s holds a character outside of first to ~.
func beyond(first rune, s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < first || r > '~' })
}

// wantFit checks that a text is fit for people to read.
func wantFit(t *testing.T, text string) {
	t.Helper()
	if strings.ContainsFunc(text, notPrintable) || len([]rune(text)) > 800 {
		t.Errorf("a text is not fit to show: %.500q", text)
	}
}

// FuzzAnswer gives the exchange any answer. In its body, LONG stands for one byte more
// than a token may have, SECRET for the client secret, and SENT for the secret as the
// request quoted it. Both go into a JSON string.
func FuzzAnswer(f *testing.F) {
	const (
		secret = `canary"secret<4711`
		// Everything that the engine itself says of an answer, but for its status.
		ours = "Autopay sent a malformed answer: it is larger than 1 MiB; it has a Content-Encoding, which was not asked for; " +
			"it is not a JSON object; access_token must be 1 to 65536 printable ASCII characters without spaces; token_type must be Bearer; " +
			"expires_in must be a whole number of seconds, at least 1; Autopay refused the credential (200): " +
			"Autopay answered 200: the answer is text/html, not JSON; a proxy or firewall may have sent it"
	)
	quote := func(s string) string {
		quoted, _ := json.Marshal(s)
		return string(quoted[1 : len(quoted)-1])
	}
	fill := strings.NewReplacer("LONG", strings.Repeat("x", 65537), "SECRET", quote(secret), "SENT", quote(quote(secret)))
	f.Fuzz(func(t *testing.T, status int, media, retryAfter, location, body string) {
		template := body + strings.ReplaceAll(body, "\\", "")
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
		var said struct {
			Token       any         `json:"access_token"`
			Lifetime    json.Number `json:"expires_in"` // quoted or not
			Error       any         `json:"error"`
			Description any         `json:"error_description"`
		}
		_ = json.Unmarshal([]byte(strings.TrimPrefix(body, "\ufeff")), &said)
		if fault == nil {
			n, want := len(got.accessToken), 3650*24*time.Hour
			if seconds, err := said.Lifetime.Int64(); err == nil && seconds < 3650*24*3600 {
				want = time.Duration(seconds) * time.Second
			} else if float, _ := said.Lifetime.Float64(); float < 3650*24*3600 {
				want = time.Duration(float) * time.Second
			}
			if status/100 != 2 || n < 1 || n > 65536 || got.accessToken != said.Token || beyond('!', got.accessToken) || beyond(' ', got.scope) || got.lifetime != want {
				t.Errorf("taken from a %d: token %.99q, scope %.99q, lifetime %s", status, got.accessToken, got.scope, got.lifetime)
			}
			return
		}
		wantFit(t, fault.text)
		for _, s := range []string{secret, quote(secret)} {
			for i := range len(s) - 5 {
				if run := s[i : i+6]; strings.Contains(fault.text, run) && !strings.Contains(template, run) {
					t.Errorf("a part of the secret, %q, is shown: %q", run, fault.text)
				}
			}
		}
		want := ruleFor(status, said.Error != nil && said.Error != "" && (said.Token == nil || said.Token == ""))
		if fault.noToken == want.counts || fault.kind != want.kind || fault.retryAfter < 0 || fault.retryAfter > time.Hour {
			t.Errorf("a %d is understood as %+v", status, fault)
		}
		// The text shows nothing of the raw answer but Autopay's error and description.
		_, mute := answerTo("")
		meant := ours + "\n"
		if mute != nil {
			meant += mute.text
		}
		for _, v := range []any{said.Error, said.Description} {
			if text, ok := v.(string); ok {
				meant += "\n" + text + "\n" + cleanText(text, secret)
			}
		}
		for i := range max(len(fault.text)-15, 0) {
			if run := fault.text[i : i+16]; strings.Contains(body, run) && !strings.Contains(meant, run) {
				t.Fatalf("%q of the raw answer is shown: %q", run, fault.text)
			}
		}
	})
}

// FuzzConfigFields writes the fields of a JSON object to config, with any text in one
// of them, over a working credential and as a new one.
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
			z.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: http.StatusServiceUnavailable})
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
