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

cd "$(dirname "${BASH_SOURCE[0]}")/../acceptance/vault"
version=$(sed -n 's|^require github.com/hashicorp/vault v||p' go.mod)
[ -n "$version" ] || die "acceptance/vault/go.mod has no version of github.com/hashicorp/vault"

# -tags minimal takes a quarter of the time and size, and has everything that the demo and the tests need:
# server, agent, CLI, raft storage, external plugins.
flags=(-tags minimal -trimpath -ldflags '-s -w')

# A changed recipe makes another binary. git computes the hash, because every checkout has git.
recipe=$({ cat go.mod go.sum && printf '%s\n' "${flags[@]}"; } | git hash-object --stdin)

cache="${XDG_CACHE_HOME:-$HOME/.cache}/vault-plugin-secrets-autopay/vault-$version-${recipe:0:8}"
binary="$cache/vault"
mkdir -p "$cache"

# With flock, concurrent runs share one build. Without it, each builds its own, and the last mv wins.
if [ ! -x "$binary" ] && type -P flock >/dev/null; then
  exec 9>"$cache/lock"
  if ! flock -n 9; then
    say "Vault: another build of $version is running; waiting for it"
    flock 9
  fi
fi

if [ -x "$binary" ]; then
  say "Vault: $binary, from the cache"
  printf '%s\n' "$binary"
  exit 0
fi

say "Vault: building $version from source, which takes about 4 minutes on 2 cores plus the download;"
say "       it is then cached in $cache"

build=
new="$binary.$$.new"
log="$binary.$$.log"
clean() {
  if [ -n "$build" ]; then
    kill -INT -- "-$build" 2>/dev/null || true
    wait "$build" 2>/dev/null || true
  fi
  rm -f "$new" "$log"
}
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

SECONDS=0
set -m # a process group of its own, so that Ctrl-C stops the compilers too
CGO_ENABLED=0 go build "${flags[@]}" -o "$new" github.com/hashicorp/vault >"$log" 2>&1 9>&- </dev/null &
build=$!
set +m
minute=60
while kill -0 "$build" 2>/dev/null; do
  sleep 1
  if [ "$SECONDS" -ge "$minute" ]; then
    say "       still building, $((minute / 60)) min"
    minute=$((minute + 60))
  fi
done
if ! wait "$build"; then
  build=
  grep -v '^go: downloading ' "$log" | tail -n 40 >&2 || true
  die "building Vault $version failed after $SECONDS s"
fi
build=
mv "$new" "$binary"
say "Vault: built in $((SECONDS / 60)) min $((SECONDS % 60)) s"
printf '%s\n' "$binary"
