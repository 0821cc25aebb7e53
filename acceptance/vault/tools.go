//go:build tools

// Package vault pins the Vault server that the acceptance tests build. It
// lives in a module of its own so that Vault's dependencies meet nobody
// else's.
//
// go.mod and go.sum hold only what is compiled with -tags minimal, so that
// nothing else is downloaded. `go mod tidy` would add what Vault's own tests
// and its other builds need, which are much larger. Three modules are replaced:
// keyring and signedxml because the versions that Vault wants are gone, and
// go-discover because of its size.
package vault

import _ "github.com/hashicorp/vault"
