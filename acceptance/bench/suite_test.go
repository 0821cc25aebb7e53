//go:build acceptance

// Package bench measures how fast tokens are read, and needs the machine for
// itself. `make acceptance` runs TestSlowRefresh. With the build tag bench there
// are also TestBench, which compares the engine with other plugins and writes
// docs/benchmarks.md (`make bench`), and TestBuilds, which compares builds of the
// plugin.
package bench

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
