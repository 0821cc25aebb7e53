#!/usr/bin/env bash
# Builds a program from a published Go module and prints its path to stdout, and messages to stderr.
# The program is cached outside the checkout.
#
#   scripts/published.sh NAME MODULE DIRECTORY DURATION PACKAGE [FLAG...]
#
# DIRECTORY holds the go.mod that requires MODULE. DURATION is how long the first build takes on 2 cores.
# In a FLAG, VERSION stands for the version of MODULE.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() {
  say "$name: $*"
  exit 1
}

name=$1 module=$2 directory=$3 duration=$4 package=$5
shift 5

cd "$(dirname "${BASH_SOURCE[0]}")/../$directory"
version=$(awk -v module="$module" '{ for (i = 1; i < NF; i++) if ($i == module && $(i + 1) ~ /^v/) { print substr($(i + 1), 2); exit } }' go.mod)
[ -n "$version" ] || die "no version of $module in $directory/go.mod"
flags=("${@//VERSION/v$version}")

# A changed recipe makes another binary. git computes the hash, because every checkout has git.
recipe=$({ cat go.mod go.sum && printf '%s\n' "${flags[@]}"; } | git hash-object --stdin)

cache="${XDG_CACHE_HOME:-$HOME/.cache}/vault-plugin-secrets-autopay/$name-$version-${recipe:0:8}"
binary="$cache/$name"
mkdir -p "$cache"

# With flock, concurrent runs share one build. Without it, each builds its own, and the last mv wins.
if [ ! -x "$binary" ] && type -P flock >/dev/null; then
  exec 9>"$cache/lock"
  if ! flock -n 9; then
    say "$name: another build of $version is running; waiting for it"
    flock 9
  fi
fi

if [ -x "$binary" ]; then
  say "$name: $binary, from the cache"
  printf '%s\n' "$binary"
  exit 0
fi

say "$name: building $version from source, which takes $duration on 2 cores plus the download;"
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
CGO_ENABLED=0 go build "${flags[@]}" -o "$new" "$package" >"$log" 2>&1 9>&- </dev/null &
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
  die "building $version failed after $SECONDS s"
fi
build=
mv "$new" "$binary"
say "$name: built in $((SECONDS / 60)) min $((SECONDS % 60)) s"
printf '%s\n' "$binary"
