#!/usr/bin/env bash
# Does what a new user does: `make demo` and `make test` in a clone of this checkout, with every cache empty, and prints
# how long each takes. Everything is in a temporary directory, which is removed at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ -z "$(git status --porcelain)" ] || echo "fresh: only what is committed is tried, not this checkout's changes" >&2
tmp=$(cd "$(mktemp -d)" && pwd -P)
running=''
clean() {
  trap '' HUP INT TERM # a second Ctrl-C must not interrupt it
  if [ -n "$running" ]; then
    kill -TERM -- "-$running" 2>/dev/null || true
    wait "$running" 2>/dev/null || true
  fi
  chmod -R u+w "$tmp" # go makes the modules read-only
  rm -rf "$tmp"
}
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

git clone -q . "$tmp/clone"
cd "$tmp/clone"
export GOMODCACHE=$tmp/modules GOCACHE=$tmp/build XDG_CACHE_HOME=$tmp/cache
unset VAULT_BIN

figures=()
TIMEFORMAT='%R %U %S'
for target in demo test; do
  printf '\n=== make %s, with empty caches\n' "$target"
  set -m # a process group of its own, to be ended as one
  make "$target" </dev/null &
  running=$!
  set +m
  code=0
  { time wait "$running" || code=$?; } 2>"$tmp/time"
  running=''
  [ "$code" -eq 0 ] || {
    echo "fresh: make $target failed" >&2
    exit "$code"
  }
  figures+=("$(awk -v target="$target" '{ printf "make %s: %d s, %d s of CPU", target, $1, $2 + $3 }' "$tmp/time")")
done
printf '\n'
printf 'fresh: %s\n' "${figures[@]}"
