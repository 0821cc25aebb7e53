#!/usr/bin/env bash
# Checks the code, the scripts, the workflows and that each go.mod is tidy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

type -P shellcheck >/dev/null || {
  echo "lint: shellcheck is not installed; on Debian: apt-get install shellcheck" >&2
  exit 1
}

echo "lint: golangci-lint, with go vet and gofumpt (its first build takes a minute or two)"
go tool -modfile=tools/go.mod golangci-lint run ./...
go -C examples/go tool -modfile=../../tools/go.mod golangci-lint run ./...
go -C tools/release tool -modfile=../go.mod golangci-lint run ./...

echo "lint: shellcheck"
shellcheck .ci/run scripts/*.sh examples/*/*.sh

echo "lint: actionlint"
go tool -modfile=tools/release/go.mod actionlint
go tool -modfile=tools/release/go.mod actionlint examples/ci/github-actions.yml

echo "lint: go.mod is tidy"
for module in . tools tools/release tools/test examples/go acceptance/consumers/{manifests,prometheus,terraform,consultemplate} acceptance/kubernetes/{servers,externalsecrets}; do
  go -C "$module" mod tidy -diff
done
