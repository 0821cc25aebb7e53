#!/usr/bin/env bash
# Compares reads of the engine with those of other plugins, in a real Vault, and writes benchmarks.md and benchmarks.svg.
# Linux only, because it reads /proc. Run it on an idle machine: anything else that runs spoils the figures.
#
#   scripts/bench.sh                   the whole of it, into docs/ (25 minutes)
#   BENCH=quick scripts/bench.sh       a trial, into bin/bench/ (3 minutes)
#   BENCH_SOAK=1h scripts/bench.sh     another duration of the load at its end
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export BENCH=${BENCH:-full} BENCH_OUT=$PWD/docs
[ "$BENCH" = full ] || BENCH_OUT=$PWD/bin/bench
export PLUGIN_BIN=$PWD/bin/vault-plugin-secrets-autopay
echo "bench: $BENCH, into $BENCH_OUT"
scripts/testtools.sh bench model
VAULT_BIN=$(scripts/vault.sh)
export VAULT_BIN
go test -tags 'acceptance bench' -count=1 -v -timeout 2h -run '^TestBench$' ./acceptance/bench
