//go:build acceptance

// Package engine holds what the plugin does in a real Vault server: a
// credential's life, the form of every answer, errors, policies, refreshes and
// outages, restarts and upgrades, and that no secret ever shows.
package engine

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
