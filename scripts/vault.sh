#!/usr/bin/env bash
# Prints the path of a Vault binary to stdout, and messages to stderr.
#
#   scripts/vault.sh         the version that acceptance/vault pins, built if it is not in the cache
#   scripts/vault.sh --any   the vault on PATH, if there is one
#
# VAULT_BIN=/path/to/vault overrides both.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() {
  say "vault.sh: $*"
  exit 1
}

any=
case "${1-}" in
  '') ;;
  --any) any=1 ;;
  *) die "unknown option $1; the only option is --any" ;;
esac

if [ -n "${VAULT_BIN-}" ]; then
  if [ ! -x "$VAULT_BIN" ] || [ -d "$VAULT_BIN" ]; then
    die "VAULT_BIN=$VAULT_BIN is not an executable file"
  fi
  dir=$(cd "$(dirname "$VAULT_BIN")" && pwd)
  say "Vault: $VAULT_BIN, from VAULT_BIN"
  printf '%s\n' "$dir/$(basename "$VAULT_BIN")"
  exit 0
fi

if [ -n "$any" ] && found=$(type -P vault); then
  if version=$(HOME=/nonexistent "$found" version 2>/dev/null) && [[ $version == Vault\ v* ]]; then
    say "Vault: $found, from PATH ($version)"
    printf '%s\n' "$found"
    exit 0
  fi
  say "Vault: ignoring $found on PATH, because 'vault version' does not print a version of Vault"
fi

# docs/dependencies.md lists what this Vault lacks. Nothing here uses that.
exec "$(dirname "${BASH_SOURCE[0]}")/published.sh" vault github.com/hashicorp/vault acceptance/vault \
  github.com/hashicorp/vault -tags minimal
