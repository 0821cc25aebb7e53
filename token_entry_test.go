package main

import (
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestDamagedTokenEntry stores an entry that this engine could have written,
// with one thing changed: it is taken, or dropped with a log line. The ledger
// stays in any case.
func TestDamagedTokenEntry(t *testing.T) {
	t.Parallel()
	begun := start2000.Add(-time.Hour)
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	for name, test := range map[string]struct {
		change func(e *tokenEntry)
		taken  bool
	}{
		"as it was written":              {func(*tokenEntry) {}, true},
		"without a failure":              {func(e *tokenEntry) { e.Failure = nil }, true},
		"a ledger alone":                 {func(e *tokenEntry) { *e = tokenEntry{Requests: e.Requests} }, true},
		"a failure alone":                {func(e *tokenEntry) { *e = tokenEntry{Generation: "g", Requests: e.Requests, Failure: e.Failure} }, true},
		"of other settings":              {func(e *tokenEntry) { e.Generation = "h" }, true},
		"lifetime of ten years":          {func(e *tokenEntry) { e.ExpireTime = begun.Add(maxLifetime * time.Second) }, true},
		"due again after the same token": {func(e *tokenEntry) { e.NextRotation = e.ExpireTime.Add(minTTL) }, true},
		"refused":                        {func(e *tokenEntry) { e.Failure.Status = http.StatusBadGateway }, true},
		"storage had failed":             {func(e *tokenEntry) { e.Failure.Status = http.StatusInternalServerError }, true},
		"waits for a day":                {func(e *tokenEntry) { e.Failure.NextAttempt = e.Failure.Time.Add(24 * time.Hour) }, true},
		"failed in another zone":         {func(e *tokenEntry) { e.Failure.Time = e.Failure.Time.In(time.FixedZone("", 7200)) }, true},

		"a token without settings":     {func(e *tokenEntry) { e.Generation, e.Failure = "", nil }, false},
		"a failure without settings":   {func(e *tokenEntry) { *e = tokenEntry{Requests: e.Requests, Failure: e.Failure} }, false},
		"times without a token":        {func(e *tokenEntry) { e.AccessToken = "" }, false},
		"a next rotation alone":        {func(e *tokenEntry) { *e = tokenEntry{Requests: e.Requests, NextRotation: far} }, false},
		"token with a newline":         {func(e *tokenEntry) { e.AccessToken = "a\r\nX-Evil: 1" }, false},
		"token with a space":           {func(e *tokenEntry) { e.AccessToken = "a b" }, false},
		"token not ASCII":              {func(e *tokenEntry) { e.AccessToken = "tökn" }, false},
		"token too long":               {func(e *tokenEntry) { e.AccessToken = strings.Repeat("x", maxTokenSize+1) }, false},
		"scope with a newline":         {func(e *tokenEntry) { e.Scope = "a\nb" }, false},
		"scope too long":               {func(e *tokenEntry) { e.Scope = strings.Repeat("x", maxTokenSize+1) }, false},
		"no expiry":                    {func(e *tokenEntry) { e.ExpireTime = time.Time{} }, false},
		"no beginning":                 {func(e *tokenEntry) { e.LastVaultRotation = time.Time{} }, false},
		"expired before it began":      {func(e *tokenEntry) { e.ExpireTime = begun.Add(-time.Second) }, false},
		"lifetime over ten years":      {func(e *tokenEntry) { e.ExpireTime = begun.Add((maxLifetime + 1) * time.Second) }, false},
		"lifetime of 8000 years":       {func(e *tokenEntry) { e.ExpireTime = far }, false},
		"expiry in another zone":       {func(e *tokenEntry) { e.ExpireTime = e.ExpireTime.In(time.FixedZone("", 7200)) }, false},
		"beginning in another zone":    {func(e *tokenEntry) { e.LastVaultRotation = begun.In(time.FixedZone("", 7200)) }, false},
		"fraction of a second":         {func(e *tokenEntry) { e.ExpireTime = e.ExpireTime.Add(time.Millisecond) }, false},
		"next rotation after the end":  {func(e *tokenEntry) { e.NextRotation = e.ExpireTime.Add(minTTL + 1) }, false},
		"failure without a status":     {func(e *tokenEntry) { e.Failure.Status = 0 }, false},
		"failure that is none":         {func(e *tokenEntry) { e.Failure.Status = http.StatusOK }, false},
		"failure that never was one":   {func(e *tokenEntry) { e.Failure.Count = 0 }, false},
		"fewer failures than none":     {func(e *tokenEntry) { e.Failure.Count = -5 }, false}, // would shift by a negative number
		"more failures than there are": {func(e *tokenEntry) { e.Failure.Count = math.MaxInt }, false},
		"waits until 9999":             {func(e *tokenEntry) { e.Failure.NextAttempt = far }, false},
		"waits for more than a day":    {func(e *tokenEntry) { e.Failure.NextAttempt = e.Failure.Time.Add(24*time.Hour + 1) }, false},
		"waits for no time":            {func(e *tokenEntry) { e.Failure.NextAttempt = e.Failure.Time }, false},
		"failure in control codes":     {func(e *tokenEntry) { e.Failure.Text = "a\x1b[31m\r\nb" }, false},
		"failure with a long story":    {func(e *tokenEntry) { e.Failure.Text = strings.Repeat("x", maxFieldSize+1) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entry := tokenEntry{
				Generation: "g", AccessToken: "token", Scope: "scope",
				LastVaultRotation: begun, ExpireTime: begun.Add(24 * time.Hour), Requests: []int64{begun.Unix()},
				Failure: &failure{
					Text: "Autopay answered 503", Status: http.StatusServiceUnavailable, Count: 1,
					Time: start2000.Add(-time.Minute), NextAttempt: start2000.Add(-time.Minute + time.Second),
				},
			}
			test.change(&entry)
			e := newEngine(t, autopaysim.Options{})
			e.opts.now = func() time.Time { return start2000 }
			e.restart()
			stored, err := json.Marshal(entry)
			if err == nil {
				err = e.storage.Put(t.Context(), &logical.StorageEntry{Key: "token/x", Value: stored})
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := e.getToken(t.Context(), "x")
			if err != nil || !slices.Equal(got.Requests, entry.Requests) {
				t.Fatalf("got %v and the ledger %v", err, got.Requests)
			}
			taken := got.AccessToken == entry.AccessToken && got.NextRotation.Equal(entry.NextRotation) && (got.Failure != nil) == (entry.Failure != nil)
			if logged := strings.Contains(e.logs.String(), "the stored token entry is damaged and dropped"); taken != test.taken || logged == test.taken {
				t.Errorf("taken: %v, want %v; logged: %v", taken, test.taken, logged)
			}
		})
	}
}
