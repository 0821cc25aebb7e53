//go:build tools

// Package vault pins the Vault server that the acceptance tests build. It
// lives in a module of its own so that Vault's dependencies meet nobody
// else's.
package vault

import _ "github.com/hashicorp/vault"
