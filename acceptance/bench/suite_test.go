//go:build acceptance

// Package bench measures how fast tokens are read, and needs the machine for
// itself. `make acceptance` runs TestSlowRefresh. With the build tag bench there
// is also TestBench (`make bench`), which compares the engine with other ways to
// serve a token and writes the results into docs/benchmarks.md.
package bench

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
