//go:build acceptance

package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"testing"
)

// ReadFile returns the content of a file that must be there.
func ReadFile(tb testing.TB, path string) []byte {
	tb.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

// WriteFile writes a file and returns its path.
func WriteFile[T string | []byte](tb testing.TB, path string, content T, mode os.FileMode) string {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		tb.Fatal(err)
	}
	return path
}

// SHA256 returns the checksum of content in hex.
func SHA256(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
