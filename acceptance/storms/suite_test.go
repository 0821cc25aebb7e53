//go:build acceptance

// Package storms tests what readers get while nodes, plugins and disks fail: the
// active node of a cluster is killed or steps down, the plugin is killed again and
// again, a node is sealed, a disk refuses writes, a mount is moved. No reader may
// ever get a dead token, and Autopay may not be asked too often.
package storms

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
