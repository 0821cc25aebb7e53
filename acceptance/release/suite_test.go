//go:build acceptance

// Package release tests what a release consists of: its files, checksums and
// version, the installer, and the container image.
package release

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
