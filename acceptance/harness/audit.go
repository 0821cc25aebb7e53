//go:build acceptance

package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"testing"
	"time"
)

// AuditedRead is one read of a token that Vault answered, as its audit log has
// it.
type AuditedRead struct {
	At    time.Time // of the answer
	Role  string    // the AppRole role that read; empty for other logins
	Token string    // hashed; empty when the answer was an error
	TTL   time.Duration
}

// AuditedReads returns the reads of a token path that Vault answered, in order,
// without those of the root token. It fails the test when it can't read the audit log.
func (s *Server) AuditedReads(tb testing.TB, path string) []AuditedRead {
	tb.Helper()
	var reads []AuditedRead
	lines := json.NewDecoder(bytes.NewReader(ReadFile(tb, s.Path("audit.log"))))
	for {
		var entry struct {
			Type string
			Time time.Time
			Auth struct {
				Policies []string
				Metadata map[string]string
			}
			Request  struct{ Operation, Path string }
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
			tb.Fatalf("audit log: %v", err)
		}
		if entry.Type != "response" || entry.Request.Operation != "read" || entry.Request.Path != path ||
			slices.Contains(entry.Auth.Policies, "root") {
			continue
		}
		reads = append(reads, AuditedRead{
			At:    entry.Time,
			Role:  entry.Auth.Metadata["role_name"],
			Token: entry.Response.Data.AccessToken,
			TTL:   time.Duration(entry.Response.Data.TTL) * time.Second,
		})
	}
}
