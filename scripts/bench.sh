#!/usr/bin/env bash
# Compares reads of the engine with other ways to serve a token, in a real Vault, and writes the section Results of
# benchmarks.md. Linux only, because it reads /proc. Run it on an idle machine: anything else that runs spoils the figures.
#
#   scripts/bench.sh                   the whole of it, into docs/ (6 minutes)
#   BENCH=quick scripts/bench.sh       a trial, into bin/bench/ (2 minutes)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export BENCH=${BENCH:-full} BENCH_PAGE=$PWD/docs/benchmarks.md
case $BENCH in
  full) ;;
  quick)
    BENCH_PAGE=$PWD/bin/bench/benchmarks.md
    mkdir -p bin/bench
    cp docs/benchmarks.md "$BENCH_PAGE"
    ;;
  *)
    echo "bench: BENCH=$BENCH: there are full and quick" >&2
    exit 2
    ;;
esac
export PLUGIN_BIN=$PWD/bin/vault-plugin-secrets-autopay
echo "bench: $BENCH, into $BENCH_PAGE"
scripts/testtools.sh bench
VAULT_BIN=$(scripts/vault.sh)
export VAULT_BIN
go test -tags 'acceptance bench' -count=1 -v -timeout 1h -run '^TestBench$' ./acceptance/bench
