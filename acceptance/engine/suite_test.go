//go:build acceptance

// Package engine tests what the plugin does in a real Vault server: a credential's
// whole life, the form of every answer, errors, policies, refreshes and outages,
// restarts and upgrades, and that secrets stay secret.
package engine

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
