#!/usr/bin/env bash
# Builds a program from a published Go module, stripped, and prints its path to stdout, and messages to stderr.
# The program is cached outside the checkout.
#
#   scripts/published.sh NAME MODULE DIRECTORY PACKAGE [FLAG...]
#
# DIRECTORY holds the go.mod that requires MODULE. In a flag, VERSION stands for the version of MODULE.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() {
  say "$name: $*"
  exit 1
}

name=$1 module=$2 directory=$3 package=$4
shift 4

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$scripts/../$directory"
version=$(awk -v module="$module" '{ for (i = 1; i < NF; i++) if ($i == module && $(i + 1) ~ /^v/) { print substr($(i + 1), 2); exit } }' go.mod)
[ -n "$version" ] || die "no version of $module in $directory/go.mod"
# -dwarf=false saves an eighth of the compiler's time; -s -w would drop the debugger's tables at the end anyway. The standard
# library is compiled as for the plugin, so that both share it.
flags=(-trimpath -gcflags=all=-dwarf=false -gcflags=std= -ldflags '-s -w' "${@//VERSION/v$version}")

# A changed recipe makes another binary. git computes the hash, because every checkout has git.
recipe=$({ find . -type f -print0 | LC_ALL=C sort -z | xargs -0 cat && printf '%s\n' "${flags[@]}"; } | git hash-object --stdin)

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
  printf '%s\n' "$binary"
  exit 0
fi

say "$name: building $version from source, into $cache"

new="$binary.$$.new"
trap 'rm -f "$new"' EXIT
CGO_ENABLED=0 "$scripts/gobuild.sh" "$name" "$new" "$package" "${flags[@]}" 9>&-
mv "$new" "$binary"
printf '%s\n' "$binary"
