package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"
)

func TestRespondError(t *testing.T) {
	t.Parallel()
	exchange, noAnswer := &exchangeError{text: "down"}, "timed out waiting for a token; try again"
	failed := func(kind failureKind, text string) error {
		return &failedAttempt{Text: text, Kind: kind, NextAttempt: start2000}
	}
	for name, test := range map[string]struct {
		err  error
		code int
		says string
	}{
		"a bad field":              {&userError{"bad"}, http.StatusBadRequest, "bad"},
		"not configured":           {&notConfiguredError{"oslo"}, http.StatusBadRequest, "first write client_id and client_secret to config/oslo on this mount"},
		"the default":              {&notConfiguredError{defaultName}, http.StatusBadRequest, "to config on this mount"},
		"not verified":             {&unverifiedError{exchangeError: exchange, until: start2000}, http.StatusServiceUnavailable, "down; nothing was changed; the same write may be tried again at 2000-01-01T00:00:00Z; to store it without asking Autopay, set verify=false"},
		"not verified, malformed":  {&unverifiedError{exchangeError: &exchangeError{text: "bad", kind: unusable}, until: start2000}, http.StatusServiceUnavailable, "bad; nothing was changed; the same write may be tried again at 2000-01-01T00:00:00Z"},
		"refused":                  {&unverifiedError{exchangeError: &exchangeError{text: "no", kind: refusal}}, http.StatusBadRequest, "no; nothing was changed"},
		"no token, unavailable":    {failed(unavailable, "down"), http.StatusServiceUnavailable, "down; the next attempt is at 2000-01-01T00:00:00Z"},
		"no token, refused":        {failed(refused, "no"), http.StatusBadGateway, "no; the next attempt is at"},
		"no token, storage":        {failed(storageFailed, "disk full"), http.StatusInternalServerError, "disk full; the next attempt is at"},
		"Vault's words by Autopay": {failed(refused, logical.ErrReadOnly.Error()), http.StatusBadGateway, logical.ErrReadOnly.Error()},
		"storage":                  {&storageError{"reading", errors.New("no quorum")}, http.StatusInternalServerError, "reading: no quorum"},
		"damage":                   {&damagedError{"x", errors.New("bad")}, http.StatusInternalServerError, "write it again"},
		"stopped":                  {errStopped, http.StatusServiceUnavailable, noAnswer},
		"the caller left":          {context.Canceled, http.StatusServiceUnavailable, noAnswer},
		"the caller's deadline":    {context.DeadlineExceeded, http.StatusServiceUnavailable, noAnswer},
		"read-only, wrapped":       {fmt.Errorf("storing: %w", logical.ErrReadOnly), http.StatusInternalServerError, logical.ErrReadOnly.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, err := respondError(test.err)
			if code(resp, err) != test.code || !strings.Contains(say(resp, err), test.says) ||
				strings.Contains(say(resp, err), "verify=false") != strings.Contains(test.says, "verify=false") {
				t.Errorf("got %d %q, want %d %q", code(resp, err), say(resp, err), test.code, test.says)
			}
			// Wrapped, a code would not cross the plugin boundary, and Vault would not pass the request on.
			if _, coded := err.(logical.HTTPCodedError); errors.As(err, new(logical.HTTPCodedError)) != coded { //nolint:errorlint // see above
				t.Errorf("%T is not bare", err)
			}
			if errors.Is(err, logical.ErrReadOnly) && err != logical.ErrReadOnly { //nolint:errorlint // see above
				t.Errorf("%v is not bare", err)
			}
		})
	}
}
