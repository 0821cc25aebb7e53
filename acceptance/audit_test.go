//go:build acceptance

package acceptance

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// tokenRead is one read of a token path that Vault answered, as its audit log
// has it: the token itself is hashed there.
type tokenRead struct {
	at    time.Time // of the answer
	token string    // its hash
	ttl   time.Duration
}

// tokenReads returns the answered reads of a path by an AppRole role, in order.
func (s *server) tokenReads(t *testing.T, role, path string) []tokenRead {
	t.Helper()
	text, err := os.ReadFile(s.path("audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	var reads []tokenRead
	lines := json.NewDecoder(bytes.NewReader(text))
	for {
		var entry struct {
			Type string
			Time time.Time
			Auth struct {
				Metadata map[string]string
			}
			Request struct {
				Operation, Path string
			}
			Response struct {
				Data struct {
					AccessToken string `json:"access_token"`
					TTL         int64
				}
			}
		}
		err := lines.Decode(&entry)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) { // Vault is at the next line
			return reads
		}
		if err != nil {
			t.Fatalf("audit log: %v", err)
		}
		if entry.Type != "response" || entry.Request.Operation != "read" || entry.Request.Path != path ||
			entry.Auth.Metadata["role_name"] != role || entry.Response.Data.AccessToken == "" {
			continue
		}
		reads = append(reads, tokenRead{
			at:    entry.Time,
			token: entry.Response.Data.AccessToken,
			ttl:   time.Duration(entry.Response.Data.TTL) * time.Second,
		})
	}
}
