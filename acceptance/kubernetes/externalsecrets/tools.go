//go:build tools

// Package externalsecrets pins the operator that the tests of
// examples/kubernetes build: the newest whose module can be required. It lives
// in a module of its own so that its dependencies meet nobody else's.
package externalsecrets

import _ "github.com/external-secrets/external-secrets"
