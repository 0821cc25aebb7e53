//go:build acceptance

package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// Tool returns the path of something that scripts/testtools.sh made for the
// suite. Nothing is built or downloaded while tests run: under load that takes
// longer than the tests can wait.
func Tool(tb testing.TB, name string) string {
	tb.Helper()
	suite, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(suite, "../../bin/test", name)
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("%v: scripts/testtools.sh %s makes it", err, filepath.Base(suite))
	}
	return path
}

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
