//go:build acceptance

// Package bench holds what needs the machine for itself. TestSlowRefresh compares
// reads during a slow refresh with those around it, at every `make acceptance`.
// With the build tag bench, TestBench compares the engine with other plugins and
// writes docs/benchmarks.md (`make bench`), and TestBuilds compares builds.
package bench

import (
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
