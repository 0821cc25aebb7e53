package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
)

func TestRespondError(t *testing.T) {
	t.Parallel()
	shown := start2000.Add(-1) // as 2000, rounded up
	unverified := func(text string, kind exchangeKind) error {
		return &unverifiedError{exchangeError: &exchangeError{text: text, kind: kind}, until: shown}
	}
	failed := func(kind failureKind, text string) error {
		return &failedAttempt{Text: text, Kind: kind, NextAttempt: shown}
	}
	const (
		create    = "first write client_id and client_secret to config"
		unchanged = "; nothing was changed; the same write may be tried again at 2000-01-01T00:00:00Z"
		unasked   = "; to store it without contacting Autopay, set verify=false"
		next      = "; the next attempt is at 2000-01-01T00:00:00Z"
		noAnswer  = "timed out waiting for a token; try again"
	)
	for name, test := range map[string]struct {
		err  error
		code int
		says string // at the end
	}{
		"a bad field":              {&userError{"bad"}, 400, "bad"},
		"not configured":           {&notConfiguredError{"oslo"}, 400, create + "/oslo on this mount"},
		"the default":              {&notConfiguredError{defaultName}, 400, create + " on this mount"},
		"not verified":             {unverified("down", outage), 503, "down" + unchanged + unasked},
		"not verified, malformed":  {unverified("bad", unusable), 503, "bad" + unchanged},
		"refused":                  {unverified("no", refusal), 400, "no" + unchanged},
		"no token, unavailable":    {failed(unavailable, "down"), 503, "down" + next},
		"no token, refused":        {failed(refused, "no"), 502, "no" + next},
		"no token, storage":        {failed(storageFailed, "disk full"), 500, "disk full" + next},
		"Vault's words by Autopay": {failed(refused, logical.ErrReadOnly.Error()), 502, logical.ErrReadOnly.Error() + next},
		"storage":                  {&storageError{"reading", errors.New("no quorum")}, 500, "reading: no quorum"},
		"damage":                   {&damagedError{"x", errors.New("bad")}, 500, ", or delete it"},
		"stopped":                  {errStopped, 503, noAnswer},
		"the caller left":          {context.Canceled, 503, noAnswer},
		"the caller's deadline":    {context.DeadlineExceeded, 503, noAnswer},
		"read-only, wrapped":       {fmt.Errorf("storing: %w", logical.ErrReadOnly), 500, logical.ErrReadOnly.Error()},
	} {
		resp, err := respondError(test.err)
		if code(resp, err) != test.code || !strings.HasSuffix(say(resp, err), test.says) {
			t.Errorf("%s: got %d %q, want %d %q", name, code(resp, err), say(resp, err), test.code, test.says)
		}
		// Wrapped, a code would not cross the plugin boundary, and Vault would not pass the request on.
		_, coded := err.(logical.HTTPCodedError) //nolint:errorlint // see above
		passedOn := err == logical.ErrReadOnly   //nolint:errorlint // see above
		if errors.As(err, new(logical.HTTPCodedError)) != coded || errors.Is(err, logical.ErrReadOnly) != passedOn {
			t.Errorf("%s: %T is not bare", name, err)
		}
	}
}
