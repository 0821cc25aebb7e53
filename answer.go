package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxAnswerSize = 1 << 20          // bytes of an answer's body
	maxTokenSize  = 64 << 10         // bytes; the token goes into a header
	maxLifetime   = 3650 * 24 * 3600 // seconds: ten years
	maxErrorText  = 200              // characters of Autopay's own words
	maxRetryAfter = time.Hour        // longest wait that Autopay may ask for
)

// tokenAnswer is a token as Autopay issued it.
type tokenAnswer struct {
	accessToken string
	scope       string
	lifetime    time.Duration // whole seconds, counted from before the request was sent
}

// exchangeError is an exchange that brought no token. Its text is safe to show:
// it never holds the secret, a token or a raw answer.
type exchangeError struct {
	text       string
	refused    bool          // Autopay refused the credential: a 4xx other than 408 and 429
	noToken    bool          // Autopay certainly issued no token
	retryAfter time.Duration // how long Autopay asks us to wait, at most maxRetryAfter; 0: it does not say
}

// Error implements error.
func (e *exchangeError) Error() string { return e.text }

// errorAnswer describes any answer other than a 200, with Autopay's error and
// error_description (RFC 6749, section 5.2) if it sent them.
func errorAnswer(resp *http.Response, body []byte, secret string, now time.Time) *exchangeError {
	code := resp.StatusCode
	e := &exchangeError{
		noToken:    code/100 != 2,
		retryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), now),
	}
	switch {
	case code/100 == 4 && code != http.StatusRequestTimeout && code != http.StatusTooManyRequests:
		e.refused = true
		e.text = fmt.Sprintf("Autopay refused the credential (%d)", code)
	case code/100 == 3:
		e.text = fmt.Sprintf("Autopay answered %d, a redirect, which is not followed (check token_url)", code)
	case code/100 == 2:
		e.text = fmt.Sprintf("Autopay sent a malformed answer: %d instead of 200", code)
	default:
		e.text = strings.TrimSpace(fmt.Sprintf("Autopay answered %d %s", code, http.StatusText(code)))
	}
	var said struct {
		Error       any `json:"error"`
		Description any `json:"error_description"`
	}
	if json.Unmarshal(body, &said) != nil {
		return e
	}
	for _, v := range []any{said.Error, said.Description} {
		if text, ok := v.(string); ok && text != "" {
			e.text += ": " + cleanText(text, secret)
		}
	}
	return e
}

// cleanText makes foreign text fit to show: one short line of printable
// characters, without the secret that the text might echo, plain or JSON-quoted.
func cleanText(text, secret string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsControl(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	quoted, _ := json.Marshal(secret)
	for _, s := range []string{secret, string(quoted[1 : len(quoted)-1])} {
		text = strings.TrimSpace(strings.ReplaceAll(text, s, "[redacted]"))
	}
	if runes := []rune(text); len(runes) > maxErrorText {
		text = string(runes[:maxErrorText-1]) + "…"
	}
	return text
}

// parseRetryAfter reads a Retry-After header, in seconds or as an HTTP date
// (RFC 9110, section 10.2.3). It returns 0 if there is none or it makes no sense.
func parseRetryAfter(value string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 63); err == nil {
		return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, min(at.Sub(now), maxRetryAfter))
	}
	return 0
}

// parseToken checks a 200 answer. The problem is "" if there is none; otherwise
// it names the field and the rule and quotes nothing.
func parseToken(contentType string, body []byte) (answer tokenAnswer, problem string) {
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/json" {
		return tokenAnswer{}, "its media type is not application/json"
	}
	if len(body) > maxAnswerSize {
		return tokenAnswer{}, "it is larger than 1 MiB"
	}
	var said struct {
		AccessToken string          `json:"access_token"`
		TokenType   string          `json:"token_type"`
		Scope       string          `json:"scope"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &said); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) && wrongType.Field != "" {
			return tokenAnswer{}, wrongType.Field + " has the wrong type"
		}
		return tokenAnswer{}, "it is not a JSON object"
	}
	seconds, err := strconv.ParseFloat(string(said.ExpiresIn), 64)
	switch {
	case said.AccessToken == "" || len(said.AccessToken) > maxTokenSize || !visibleASCII(said.AccessToken, '!'):
		return tokenAnswer{}, "access_token must be 1 to 65536 printable ASCII characters without spaces"
	case !strings.EqualFold(said.TokenType, "Bearer"):
		return tokenAnswer{}, "token_type must be Bearer"
	case len(said.Scope) > maxTokenSize || !visibleASCII(said.Scope, ' '):
		return tokenAnswer{}, "scope must be at most 65536 printable ASCII characters"
	case err != nil || seconds < 1 || seconds > maxLifetime || seconds != math.Trunc(seconds):
		return tokenAnswer{}, "expires_in must be a whole number of seconds from 1 to ten years"
	}
	return tokenAnswer{
		accessToken: said.AccessToken,
		scope:       said.Scope,
		lifetime:    time.Duration(seconds) * time.Second,
	}, ""
}

// visibleASCII reports whether s holds only ASCII characters from first to ~.
func visibleASCII(s string, first byte) bool {
	for i := range len(s) {
		if s[i] < first || s[i] > '~' {
			return false
		}
	}
	return true
}
