#!/usr/bin/env bash
# Runs each fuzz test in turn, for a time such as 2m or 1h.
#
#   scripts/fuzz.sh 2m
#
# Go keeps an input that fails in testdata/fuzz; from then on it is a unit test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for target in $(go test -list '^Fuzz' . | grep '^Fuzz'); do
  echo "fuzz: $target for $1"
  # Making inputs smaller takes longer than it is worth when they only cover new code.
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 10x .
done
