package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

const goodAnswer = `{"access_token":"canary-token","scope":"customer_club","expires_in":86400,"token_type":"Bearer"}`

// answer is a transport that always answers the same.
type answer struct {
	status int
	media  string
	body   string
}

func (a answer) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	rec.Header().Set("Content-Type", a.media)
	rec.WriteHeader(a.status)
	_, _ = rec.WriteString(a.body)
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

// answerRule is what becomes of an answer without a usable token.
type answerRule struct {
	first, last int // status
	code        int // what readers get
	counts      bool
	wait        time.Duration // the least before the next attempt
	kind        exchangeKind
}

// answerRules says what DESIGN.md's rules 5 and 8 mean for each status. It repeats
// no condition of the code, so that a test which uses it sees a change of one.
var answerRules = []answerRule{
	{0, 199, 503, true, time.Second, outage}, // 0: no answer
	{200, 299, 503, true, 5 * time.Minute, unusable},
	{300, 399, 503, false, time.Second, unreachable},
	{400, 406, 502, false, 5 * time.Minute, refusal},
	{407, 407, 503, false, time.Second, unreachable},
	{408, 408, 503, false, time.Second, outage},
	{409, 428, 502, false, 5 * time.Minute, refusal},
	{429, 429, 503, false, time.Minute, busy},
	{430, 499, 502, false, 5 * time.Minute, refusal},
	{500, 502, 503, true, time.Second, outage},
	{503, 503, 503, false, time.Second, outage},
	{504, 999, 503, true, time.Second, outage},
}

// ruleFor returns the rule for a status, whose answer may hold an OAuth error.
func ruleFor(status int, oauthError bool) answerRule {
	i := slices.IndexFunc(answerRules, func(r answerRule) bool { return r.first <= status && status <= r.last })
	rule := answerRules[i]
	if rule.kind == unusable && oauthError {
		rule.kind, rule.code = refusal, 502
	}
	return rule
}

func TestExchangeAnswers(t *testing.T) {
	t.Parallel()
	const jsonMedia = "application/json"
	long := strings.Repeat("x", maxTokenSize+1)
	html := `<!DOCTYPE html><html>canary-token</html>`
	ok := func(field, value string) answer {
		fields := map[string]string{"access_token": `"t"`, "expires_in": "60", "token_type": `"Bearer"`, "scope": `"s"`}
		fields[field] = value
		var parts []string
		for k, v := range fields {
			if v != "" {
				parts = append(parts, fmt.Sprintf("%q:%s", k, v))
			}
		}
		return answer{200, jsonMedia, "{" + strings.Join(parts, ",") + "}"}
	}
	for name, test := range map[string]struct {
		answer answer
		says   string // "": it is taken
		status int
	}{
		"as documented":            {answer{200, jsonMedia, goodAnswer}, "", 0},
		"with a charset":           {answer{200, "application/json; charset=utf-8", goodAnswer}, "", 0},
		"bearer in lower case":     {ok("token_type", `"bearer"`), "", 0},
		"no scope":                 {ok("scope", ""), "", 0},
		"scope null":               {ok("scope", "null"), "", 0},
		"lifetime as 86400.0":      {ok("expires_in", "86400.0"), "", 0},
		"lifetime of ten years":    {ok("expires_in", "315360000"), "", 0},
		"media type html":          {answer{200, "text/html", goodAnswer}, "", 0},
		"no media type":            {answer{200, "", goodAnswer}, "", 0},
		"media type twice":         {answer{200, "application/json, application/json", goodAnswer}, "", 0},
		"a byte order mark":        {answer{200, jsonMedia, "\ufeff" + goodAnswer}, "", 0},
		"201":                      {answer{201, jsonMedia, goodAnswer}, "", 0},
		"no token type":            {ok("token_type", ""), "", 0},
		"token type null":          {ok("token_type", "null"), "", 0},
		"scope with newline":       {ok("scope", `"a\nb"`), "", 0},
		"scope list":               {ok("scope", `["a","b c",1]`), "", 0},
		"scope not ASCII":          {ok("scope", `"läs"`), "", 0},
		"scope too long":           {ok("scope", `"`+long+`"`), "", 0},
		"scope a number":           {ok("scope", "1e400"), "", 0},
		"lifetime as text":         {ok("expires_in", `"86400"`), "", 0},
		"lifetime beyond 10 years": {ok("expires_in", "315360001"), "", 0},
		"lifetime huge":            {ok("expires_in", "1e400"), "", 0},
		"lifetime huge, as text":   {ok("expires_in", `"99999999999999999999999"`), "", 0},
		"a token and an error":     {ok("error", `"access_denied"`), "", 0},

		"empty":               {answer{200, jsonMedia, ""}, "not a JSON object", 503},
		"not JSON":            {answer{200, jsonMedia, "canary-token"}, "not a JSON object", 503},
		"HTML":                {answer{200, "text/html; charset=utf-8", html}, "Autopay answered 200: the answer is text/html, not JSON; a proxy or firewall may have sent it", 503},
		"HTML without a type": {answer{200, "", "\n" + html}, "the answer is text/html, not JSON", 503},
		"a JSON list":         {answer{200, jsonMedia, "[]"}, "not a JSON object", 503},
		"JSON and more":       {answer{200, jsonMedia, goodAnswer + "x"}, "not a JSON object", 503},
		"too large":           {answer{200, jsonMedia, strings.Repeat(" ", maxAnswerSize) + goodAnswer}, "larger than 1 MiB", 503},
		"no token":            {ok("access_token", ""), "access_token must be", 503},
		"token null":          {ok("access_token", "null"), "access_token must be", 503},
		"token empty":         {ok("access_token", `""`), "access_token must be", 503},
		"token number":        {ok("access_token", `4711`), "access_token must be", 503},
		"token object":        {ok("access_token", `{"canary-token":1}`), "access_token must be", 503},
		"token with space":    {ok("access_token", `"canary token"`), "access_token must be", 503},
		"token with newline":  {ok("access_token", `"a\r\nX-Evil: 1"`), "access_token must be", 503},
		"token not ASCII":     {ok("access_token", `"tökn"`), "access_token must be", 503},
		"token too long":      {ok("access_token", `"`+long+`"`), "access_token must be", 503},
		"token type mac":      {ok("token_type", `"mac"`), "token_type must be Bearer", 503},
		"token type number":   {ok("token_type", "1"), "token_type must be Bearer", 503},
		"no lifetime":         {ok("expires_in", ""), "expires_in must be", 503},
		"lifetime null":       {ok("expires_in", "null"), "expires_in must be", 503},
		"lifetime 0":          {ok("expires_in", "0"), "expires_in must be", 503},
		"lifetime negative":   {ok("expires_in", "-60"), "expires_in must be", 503},
		"lifetime -1e400":     {ok("expires_in", "-1e400"), "expires_in must be", 503},
		"lifetime a fraction": {ok("expires_in", "59.5"), "expires_in must be", 503},
		"lifetime in words":   {ok("expires_in", `"soon"`), "expires_in must be", 503},
		"lifetime text 6e1":   {ok("expires_in", `"6e1"`), "expires_in must be", 503},
		"lifetime list":       {ok("expires_in", "[60]"), "expires_in must be", 503},
		"204":                 {answer{204, jsonMedia, ""}, "not a JSON object", 503},

		"an error in a 200":      {answer{200, jsonMedia, `{"error":"access_denied","error_description":"Unauthorized"}`}, "Autopay refused the credential (200): access_denied: Unauthorized", 502},
		"an error, token null":   {answer{200, jsonMedia, `{"error":"access_denied","access_token":null}`}, "Autopay refused the credential (200): access_denied", 502},
		"an error of other type": {answer{200, jsonMedia, `{"error":{"canary":1}}`}, "Autopay refused the credential (200)", 502},
		"302":                    {answer{302, "text/html", html}, "Autopay answered 302, a redirect, which is not followed (check token_url)", 503},
		"401 as documented":      {answer{401, jsonMedia, `{"error":"access_denied","error_description":"Unauthorized"}`}, "Autopay refused the credential (401): access_denied: Unauthorized", 502},
		"401 with a raw body":    {answer{401, "text/plain", "canary-token"}, "Autopay refused the credential (401)", 502},
		"401 with other types":   {answer{401, jsonMedia, `{"error":["x"],"error_description":{"a":1}}`}, "Autopay refused the credential (401)", 502},
		"400":                    {answer{400, jsonMedia, `{"error":"invalid_request"}`}, "Autopay refused the credential (400): invalid_request", 502},
		"403 of a firewall":      {answer{403, "text/html", html}, "Autopay answered 403 Forbidden: the answer is text/html, not JSON; a proxy or firewall may have sent it", 502},
		"403 echoing the secret": {answer{403, jsonMedia, `{"error":"no","error_description":"bad secret ` + testSecret + `"}`}, "(403): no: bad secret [redacted]", 502},
		"404":                    {answer{404, "text/html", html}, "Autopay answered 404 Not Found (check token_url): the answer is text/html", 502},
		"405":                    {answer{405, jsonMedia, ""}, "Autopay answered 405 Method Not Allowed (check token_url)", 502},
		"407":                    {answer{407, jsonMedia, ""}, "Autopay can't be reached: the proxy answered 407 Proxy Authentication Required", 503},
		"408":                    {answer{408, jsonMedia, ""}, "Autopay answered 408 Request Timeout", 503},
		"410":                    {answer{410, jsonMedia, ""}, "Autopay answered 410 Gone (check token_url)", 502},
		"415":                    {answer{415, jsonMedia, ""}, "Autopay answered 415 Unsupported Media Type (check token_url)", 502},
		"421":                    {answer{421, jsonMedia, ""}, "Autopay answered 421 Misdirected Request (check token_url)", 502},
		"422":                    {answer{422, jsonMedia, `{"error":"no"}`}, "Autopay answered 422 Unprocessable Entity: no", 502},
		"429":                    {answer{429, jsonMedia, ""}, "Autopay answered 429 Too Many Requests", 503},
		"500 in control codes":   {answer{500, jsonMedia, `{"error":"a\u001b[31m\r\nb\u202e"}`}, "Autopay answered 500 Internal Server Error: a [31m  b", 503},
		"500 with a long story":  {answer{500, jsonMedia, `{"error":"` + strings.Repeat("ä", 5000) + `"}`}, ": " + strings.Repeat("ä", 199) + "…", 503},
		"503 of a gateway":       {answer{503, "text/html", html}, "Autopay answered 503 Service Unavailable: the answer is text/html", 503},
		"504 of a gateway":       {answer{504, "text/html", html}, "Autopay answered 504 Gateway Timeout: the answer is text/html", 503},
		"599":                    {answer{599, jsonMedia, ""}, "Autopay answered 599", 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &client{now: func() time.Time { return start2000 }, transport: test.answer}
			got, f := c.exchange(t.Context(), tokenRequest{
				tokenURL: defaultTokenURL, clientID: testID, clientSecret: testSecret, timeout: time.Minute,
			})
			if test.says == "" {
				if f != nil || got.accessToken == "" || got.lifetime < time.Second {
					t.Fatalf("got %+v, %v", got, f)
				}
				return
			}
			if f == nil {
				t.Fatalf("taken: %+v", got)
			}
			if !strings.Contains(f.text, test.says) || strings.Contains(f.text, "canary") || len([]rune(f.text)) > 500 {
				t.Errorf("got %q, want %q", f.text, test.says)
			}
			if want := ruleFor(test.answer.status, test.status == http.StatusBadGateway); *f != (exchangeError{f.text, want.kind, !want.counts, 0}) || want.code != test.status {
				t.Errorf("got %+v, want %+v", f, want)
			}
			// In the whole engine, a bad answer changes neither credential nor token.
			e := configured(t)
			e.client.transport = test.answer
			e.wantUnchanged(func() {
				resp, err := e.write("config", map[string]any{"client_id": "another"})
				if err == nil && !resp.IsError() {
					t.Error("the config was taken")
				}
				if strings.Contains(say(resp, err)+e.logs.String(), "canary-token") {
					t.Error("the token is shown")
				}
			})
		})
	}
}

// TestScopeIsOnlyShown: whatever the scope is, the token is used.
func TestScopeIsOnlyShown(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"": "", "null": "", `"a b"`: "a b", `["a","b c",1,null]`: "a b c", `"läs skriv"`: "skriv", `"a\nb"`: "a b", `{"a":1}`: "",
	} {
		if got := scopeText([]byte(raw)); got != want {
			t.Errorf("%s is shown as %q, want %q", raw, got, want)
		}
	}
}

// TestNoPartOfTheSecretIsShown has Autopay echo the secret where its words are cut.
func TestNoPartOfTheSecretIsShown(t *testing.T) {
	t.Parallel()
	for before := maxErrorText - len(testSecret) - 1; before < maxErrorText; before++ {
		said := cleanText(strings.Repeat("x", before)+testSecret, testSecret)
		if strings.Contains(said, testSecret[:2]) {
			t.Errorf("a part of the secret is shown: %q", said)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const date = "Sat, 01 Jan 2000 01:00:00 GMT" // Autopay's clock is an hour ahead
	for value, want := range map[string]time.Duration{
		"": 0, "soon": 0, "-1": 0, "NaN": 0, "90": 90 * time.Second, " 90 ": 90 * time.Second, "90.5": 91 * time.Second, "0.1": time.Second,
		"36000": time.Hour, "1e400": time.Hour, "99999999999999999999": time.Hour,
		"Sat, 01 Jan 2000 01:30:00 GMT": 30 * time.Minute, "Sat, 01 Jan 2000 00:30:00 GMT": 0, "Sun, 02 Jan 2000 00:00:00 GMT": time.Hour,
	} {
		if got := parseRetryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, start2000); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
	if got := parseRetryAfter(http.Header{"Retry-After": {date}}, start2000); got != time.Hour {
		t.Errorf("without a Date: %s, want an hour by our own clock", got)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	const second, minute = time.Second, time.Minute
	for kind, want := range map[exchangeKind][]time.Duration{
		outage:      {second, 2 * second, 4 * second, 8 * second, 16 * second, 32 * second, minute, minute},
		unreachable: {second, 2 * second, 4 * second, 8 * second, 16 * second, 32 * second, minute, minute},
		busy:        {minute, 2 * minute, 4 * minute, 5 * minute, 5 * minute},
		refusal:     {5 * minute, 10 * minute, 15 * minute, 15 * minute},
		unusable:    {5 * minute, 10 * minute, 20 * minute, 40 * minute, 60 * minute, 60 * minute},
	} {
		for range 100 {
			var wait time.Duration
			for i, most := range want {
				least := max(most-min(most/4, maxJitter), want[0])
				if wait = backoffs[kind].after(wait); wait < least || wait > most {
					t.Fatalf("kind %d: wait %d is %s, want %s to %s", kind, i, wait, least, most)
				}
			}
		}
	}
	if wait := backoffs[refusal].after(minute); wait != 5*minute {
		t.Errorf("a refusal after an outage waits %s, want 5 minutes", wait)
	}
}
