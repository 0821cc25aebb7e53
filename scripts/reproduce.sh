#!/usr/bin/env bash
# Builds a release of HEAD twice, in clones at different paths, under different times of the files, time zones, locales,
# umasks and build settings, the second time with an empty build cache, and compares the checksums.
#
#   scripts/reproduce.sh                               linux/amd64 and windows/arm64
#   PLATFORMS="linux/amd64 darwin/arm64" scripts/reproduce.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PLATFORMS=${PLATFORMS:-linux/amd64 windows/arm64}
[ -z "$(git status --porcelain)" ] || echo "reproduce: only what is committed is built, not this checkout's changes" >&2

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
second="$tmp/another place/clone"
git clone -q . "$tmp/first"
git clone -q . "$second"
find "$second" -name .git -prune -o -exec touch -t 200102030405 {} +

release() {
  local start=$SECONDS
  (cd "$1" && unset DIST SOURCE_DATE_EPOCH && "${@:2}" scripts/release.sh >"$tmp/log" 2>&1) || {
    cat "$tmp/log" >&2
    exit 1
  }
  echo "reproduce: built $PLATFORMS in $((SECONDS - start)) s"
}
release "$tmp/first" env TZ=UTC LC_ALL=C
umask 077
release "$second" env TZ=Asia/Kolkata LC_ALL=tr_TR.UTF-8 CGO_ENABLED=1 GOAMD64=v3 GOARM64=v9.0 GOFLAGS=-trimpath=false \
  GOCACHE="$tmp/cache"

if ! diff "$tmp/first/dist/SHA256SUMS" "$second/dist/SHA256SUMS"; then
  echo "reproduce: the two builds differ" >&2
  exit 1
fi
echo "reproduce: both builds have the same checksums:"
cat "$tmp/first/dist/SHA256SUMS"
