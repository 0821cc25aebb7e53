#!/usr/bin/env bash
# Runs the unit tests with the race detector. That needs a C compiler; on a machine without one the tests run without the
# detector, except in CI, where this fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cc=$(go env CC)
race=(-race)
export CGO_ENABLED=1
if ! type -P "${cc%% *}" >/dev/null; then
  echo "unit: there is no C compiler ($cc), so there is no race detector; install gcc to get it" >&2
  [ -z "${CI-}" ] || exit 1
  race=()
  CGO_ENABLED=0
fi
echo "unit: go test ${race[*]-} ./..."
go test ${race[@]+"${race[@]}"} ./...
go -C tools/release test ${race[@]+"${race[@]}"} ./...
