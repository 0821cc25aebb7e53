#!/usr/bin/env bash
# Runs `go build` in the current directory, or `go test -c` with -test, and shows on stderr how far it is.
#
#   scripts/gobuild.sh [-test] NAME OUTPUT PACKAGE [FLAG...]
#
# On a terminal it keeps one line up to date; elsewhere it prints a line every 30 seconds. A build that takes less than
# 3 seconds shows nothing.
set -euo pipefail

list=(list -deps)
build() { go build -v "$@" -o "$output" "$package"; }
if [ "$1" = -test ]; then
  shift
  list+=(-test)
  # With -v go list names what it compiles, which go test does not.
  build() { go "${list[@]}" -export -v -f '' "$@" "$package" && go test -c -vet=off "$@" -o "$output" "$package"; }
fi
name=$1 output=$2 package=$3
shift 3

tmp=$(mktemp -d)
export GOTMPDIR=$tmp
# running reports whether a job has not ended. The shell knows; a process ID may soon belong to another process.
running() { jobs -pr | grep -qx "$1"; }
clean() {
  for job in $(jobs -pr); do
    kill -TERM -- "-$job" 2>/dev/null || true
    wait "$job" 2>/dev/null || true
  done
  rm -rf "$tmp"
}
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

line='' shown=3
if [ -t 2 ]; then line=$'\r\e[K'; fi
show() {
  if [ -n "$line" ]; then
    printf '%s%s: %s' "$line" "$name" "$1" >&2
  elif [ "$SECONDS" -ge "$shown" ]; then
    printf '%s: %s\n' "$name" "$1" >&2
    shown=$((SECONDS + 30))
  fi
}

# In the log each package that go begins to compile has a line of one word.
lines() { grep -c "$@" "$tmp/log" || true; }

total='' before='' began=''
progress() {
  local compiled modules seconds left
  compiled=$(lines -v ' ')
  if [ -z "$total" ]; then
    if running "$counting"; then # it waits for the downloads
      modules=$(lines '^go: downloading ')
      [ "$modules" -eq 0 ] || show "downloading, $modules modules so far"
    else
      total=$(($(wc -l <"$tmp/count") + compiled)) before=$compiled began=$SECONDS
    fi
    return
  fi
  [ "$total" -ge "$compiled" ] || total=$compiled
  if [ "$compiled" -ge "$total" ]; then
    show "linking"
    return
  fi
  seconds=$((SECONDS - began)) left=''
  if [ "$seconds" -ge 10 ] && [ "$compiled" -gt "$before" ]; then
    left=", about $((seconds * (total - compiled) / (compiled - before) / 60 + 1)) min left"
  fi
  show "$((100 * compiled / total))%, $compiled of $total packages$left"
}

SECONDS=0
set -m # process groups of their own, so that Ctrl-C stops the compilers too
build "$@" >"$tmp/log" 2>&1 </dev/null &
building=$!
counting=''
for _ in {1..30}; do
  running "$building" || break
  sleep 0.1
done
if running "$building"; then
  # The packages that are not in Go's cache.
  go "${list[@]}" "$@" -f '{{if and .Stale (ne .StaleReason "not installed but available in build cache")}}{{.ImportPath}}{{end}}' \
    "$package" >"$tmp/count" 2>/dev/null </dev/null &
  counting=$!
fi
set +m
while running "$building"; do
  progress
  sleep 1
done
[ -z "$line" ] || printf '%s' "$line" >&2
if ! wait "$building"; then
  grep ' ' "$tmp/log" | grep -v '^go: downloading ' >&2 || true
  echo "$name: the build failed after $SECONDS s" >&2
  exit 1
fi
if [ "$SECONDS" -ge 3 ]; then
  printf '%s: built in %d min %d s\n' "$name" $((SECONDS / 60)) $((SECONDS % 60)) >&2
fi
