#!/usr/bin/env bash
# Builds a release into dist/: for each platform the bare binary, an archive of it and an SBOM; a container image of the
# Linux binaries; and SHA256SUMS over all of them. The same source and the same Go make the same bytes, whoever builds
# them, where and when. Needs Go, git and make.
#
#   scripts/release.sh                               all platforms
#   PLATFORMS="linux/amd64 linux/arm64" scripts/release.sh
#
# DIST=DIRECTORY builds into another directory; whatever it holds is removed first. SOURCE_DATE_EPOCH overrides the time
# of the commit, which all files in the archives and the image carry. SOURCE_URL is the repository that the image names
# as its source.
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=vault-plugin-secrets-autopay
platforms=${PLATFORMS:-linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64 freebsd/amd64 freebsd/arm64}
dist=${DIST:-dist}

die() {
  echo "release: $*" >&2
  exit 1
}

# The one place that says which version this is.
version=$(sed -n 's/^var version = "\(v[0-9][^"]*\)"$/\1/p' client.go)
[ -n "$version" ] || die 'no line var version = "v…" in client.go'

# A tag promises a version and a commit.
tags=$(git tag --points-at HEAD --list 'v[0-9]*')
changes=$(git status --porcelain)
if [ -n "$tags" ]; then
  [ "$tags" = "$version" ] || die "the tag of this commit is ${tags//$'\n'/ }, the version in client.go is $version"
  [ -z "$changes" ] || die "the checkout of $tags has changes of its own"
elif [ -n "$changes" ]; then
  echo "release: the checkout has changes that are in no commit: nobody else can build this" >&2
fi
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# What runs here is built for here, whatever the caller's settings are for.
for package in ./pack github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod; do
  tool=${package##*/}
  (cd tools/release && env -u GOOS -u GOARCH CGO_ENABLED=0 GOWORK=off ../../scripts/gobuild.sh "$tool" "$tmp/$tool" $package -trimpath)
done

rm -rf "$dist"
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
images=()
echo "release: $name $version with $(go env GOVERSION), into $dist"
for platform in $platforms; do
  os=${platform%/*} arch=${platform#*/}
  exe='' archive=tar.gz
  # Windows opens zip by itself; a server elsewhere has tar, and often no unzip.
  if [ "$os" = windows ]; then exe=.exe archive=zip; fi
  base=${name}_${version#v}_${os}_$arch
  echo "release: $base"
  GOOS=$os GOARCH=$arch make build PLUGIN="$dist/$base$exe" >/dev/null

  rm -rf "$tmp/files"
  mkdir "$tmp/files"
  cp "$dist/$base$exe" "$tmp/files/$name$exe"
  cp LICENSE README.md CHANGELOG.md "$tmp/files/"
  if [ "$os" != windows ]; then cp scripts/install.sh "$tmp/files/"; fi
  "$tmp/pack" "$archive" "$tmp/files" >"$dist/$base.$archive"

  # The tool enters checksums of itself, which depend on the host that built it: they are left out.
  "$tmp/cyclonedx-gomod" bin -json -noserial -notimestamp -std -licenses -version "$version" \
    "$dist/$base$exe" 2>"$tmp/sbom.log" | sed '/^        "hashes": \[$/,/^        \],$/d' >"$dist/$base.cdx.json" ||
    die "the SBOM failed: $(cat "$tmp/sbom.log")"

  if [ "$os" = linux ]; then images+=("$arch=$dist/$base"); fi
done

if [ ${#images[@]} -gt 0 ]; then
  image=${name}_${version#v}_image.tar
  echo "release: $image"
  # The commit's hash, followed by -dirty where it is not what was built.
  revision=$(git describe --always --abbrev=40 --dirty --exclude='*')
  "$tmp/pack" image -version "$version" -revision "$revision" -source "${SOURCE_URL:-}" "${images[@]}" >"$dist/$image"
fi

cd "$dist"
if type -P sha256sum >/dev/null; then sum=(sha256sum); else sum=(shasum -a 256); fi
export LC_ALL=C # the order of the names
"${sum[@]}" -- * >"$tmp/SHA256SUMS"
mv "$tmp/SHA256SUMS" .
cat SHA256SUMS
