//go:build acceptance

// Package storms holds what readers get while things go wrong beneath them: the
// active node of a cluster is killed or steps down, the plugin is killed again
// and again, a node is sealed, a disk fails, a mount moves. No reader may ever
// get a dead token, and Autopay may not be asked too often.
package storms

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
