#!/usr/bin/env bash
# Prints the path of a Vault binary on stdout; everything else goes to stderr.
#
#   scripts/vault.sh         the server that acceptance/vault pins, built when the cache has none
#   scripts/vault.sh --any   a vault already on PATH serves as well
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
  *) die "unknown option $1 (there is only --any)" ;;
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
  say "Vault: $found on PATH does not answer 'vault version' as Vault does; not using it"
fi

# -tags minimal: a quarter of the time and size of the full server, with all that the
# demo and the tests need: server, agent, CLI, raft storage, external plugins.
exec "$(dirname "${BASH_SOURCE[0]}")/published.sh" vault github.com/hashicorp/vault acceptance/vault "about 4 minutes" \
  github.com/hashicorp/vault -tags minimal -trimpath -ldflags '-s -w'
