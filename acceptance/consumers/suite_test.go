//go:build acceptance

// Package consumers holds the programs that read the token: Vault Agent,
// consul-template, what Vault Secrets Operator makes of an answer, Terraform, and
// the examples for each language, with the examples' policies and logins. Tests
// whose names begin with TestExample run a file of examples/.
//
// The modules in its folders have dependencies that must meet nobody else's.
// manifests and prometheus check examples in tests of their own.
package consumers

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
