package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
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

func TestExchangeAnswers(t *testing.T) {
	t.Parallel()
	const jsonMedia = "application/json"
	long := strings.Repeat("x", maxTokenSize+1)
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
		"media type html":          {answer{200, "text/html", goodAnswer}, "media type is not application/json", 503},
		"no media type":            {answer{200, "", goodAnswer}, "media type is not application/json", 503},
		"empty":                    {answer{200, jsonMedia, ""}, "not a JSON object", 503},
		"not JSON":                 {answer{200, jsonMedia, "<html>canary-token"}, "not a JSON object", 503},
		"a JSON list":              {answer{200, jsonMedia, "[]"}, "not a JSON object", 503},
		"JSON and more":            {answer{200, jsonMedia, goodAnswer + "x"}, "not a JSON object", 503},
		"too large":                {answer{200, jsonMedia, strings.Repeat(" ", maxAnswerSize) + goodAnswer}, "larger than 1 MiB", 503},
		"no token":                 {ok("access_token", ""), "access_token must be", 503},
		"token empty":              {ok("access_token", `""`), "access_token must be", 503},
		"token number":             {ok("access_token", `4711`), "access_token has the wrong type", 503},
		"token object":             {ok("access_token", `{"canary-token":1}`), "access_token has the wrong type", 503},
		"token with space":         {ok("access_token", `"canary token"`), "access_token must be", 503},
		"token with newline":       {ok("access_token", `"a\r\nX-Evil: 1"`), "access_token must be", 503},
		"token not ASCII":          {ok("access_token", `"tökn"`), "access_token must be", 503},
		"token too long":           {ok("access_token", `"`+long+`"`), "access_token must be", 503},
		"no token type":            {ok("token_type", ""), "token_type must be Bearer", 503},
		"token type mac":           {ok("token_type", `"mac"`), "token_type must be Bearer", 503},
		"token type number":        {ok("token_type", "1"), "token_type has the wrong type", 503},
		"scope with newline":       {ok("scope", `"a\nb"`), "scope must be", 503},
		"scope list":               {ok("scope", `["a"]`), "scope has the wrong type", 503},
		"scope too long":           {ok("scope", `"`+long+`"`), "scope must be", 503},
		"no lifetime":              {ok("expires_in", ""), "expires_in must be", 503},
		"lifetime null":            {ok("expires_in", "null"), "expires_in must be", 503},
		"lifetime 0":               {ok("expires_in", "0"), "expires_in must be", 503},
		"lifetime negative":        {ok("expires_in", "-60"), "expires_in must be", 503},
		"lifetime a fraction":      {ok("expires_in", "59.5"), "expires_in must be", 503},
		"lifetime as text":         {ok("expires_in", `"86400"`), "expires_in must be", 503},
		"lifetime beyond 10 years": {ok("expires_in", "315360001"), "expires_in must be", 503},
		"lifetime huge":            {ok("expires_in", "1e400"), "expires_in must be", 503},
		"lifetime list":            {ok("expires_in", "[60]"), "expires_in must be", 503},
		"201":                      {answer{201, jsonMedia, goodAnswer}, "Autopay sent a malformed answer: 201 instead of 200", 503},
		"204":                      {answer{204, jsonMedia, ""}, "204 instead of 200", 503},
		"302":                      {answer{302, jsonMedia, ""}, "Autopay answered 302, a redirect, which is not followed", 503},
		"401 as documented":        {answer{401, jsonMedia, `{"error":"access_denied","error_description":"Unauthorized"}`}, "Autopay refused the credential (401): access_denied: Unauthorized", 502},
		"401 with a raw body":      {answer{401, "text/html", "<html>canary-token</html>"}, "Autopay refused the credential (401)", 502},
		"401 with other types":     {answer{401, jsonMedia, `{"error":["x"],"error_description":{"a":1}}`}, "Autopay refused the credential (401)", 502},
		"403 echoing the secret":   {answer{403, jsonMedia, `{"error":"no","error_description":"bad secret ` + testSecret + `"}`}, "(403): no: bad secret [redacted]", 502},
		"404":                      {answer{404, jsonMedia, ""}, "Autopay refused the credential (404)", 502},
		"408":                      {answer{408, jsonMedia, ""}, "Autopay answered 408 Request Timeout", 503},
		"429":                      {answer{429, jsonMedia, ""}, "Autopay answered 429 Too Many Requests", 503},
		"500 in control codes":     {answer{500, jsonMedia, `{"error":"a\u001b[31m\r\nb\u202e"}`}, "Autopay answered 500 Internal Server Error: a [31m  b", 503},
		"500 with a long story":    {answer{500, jsonMedia, `{"error":"` + strings.Repeat("ä", 5000) + `"}`}, ": " + strings.Repeat("ä", 199) + "…", 503},
		"599":                      {answer{599, jsonMedia, ""}, "Autopay answered 599", 503},
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
			if !strings.Contains(f.text, test.says) || f.refused != (test.status == http.StatusBadGateway) {
				t.Errorf("got %q, refused: %v; want %q for a %d", f.text, f.refused, test.says, test.status)
			}
			if strings.Contains(f.text, "canary") || len([]rune(f.text)) > 500 {
				t.Errorf("the text shows too much: %q", f.text)
			}
			if f.noToken != (test.answer.status/100 != 2) {
				t.Errorf("certainly no token: %v", f.noToken)
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
