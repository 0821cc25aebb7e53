//go:build acceptance

// Package consumers tests the programs that read the token: Vault Agent,
// consul-template, Terraform, the rules that Vault Secrets Operator applies to an
// answer, and the examples for each language, with their policies and logins. A
// test whose name begins with TestExample runs a file of examples/.
//
// The folders below are modules of their own, because their dependencies must not
// mix with ours. manifests and prometheus have tests themselves; from the others
// scripts/testtools.sh builds what the tests here run.
package consumers

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
