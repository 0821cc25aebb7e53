#!/usr/bin/env bash
# Installs the plugin into a running Vault or OpenBao, or upgrades it there: checks the binary's checksum, copies it into
# the plugin directory under its version, registers it, enables it or moves it to the new version, and reloads it.
# It skips completed steps, so it is safe to run again. Needs bash, the vault or bao command, and sha256sum
# or shasum. See docs/install.md.
set -euo pipefail

name=vault-plugin-secrets-autopay
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<USAGE
usage: install.sh [options]

Run it on the server's host, with VAULT_ADDR and VAULT_TOKEN set as for the vault command. Without a vault command it
uses bao.

  --binary FILE      the plugin (default: $name beside this script, or in ../bin)
  --sums FILE        the release's SHA256SUMS, which must list the binary's checksum (default: beside the binary)
  --sha256 SUM       the checksum that the binary must have, instead of --sums
  --plugin-dir DIR   the server's plugin_directory (default: ask the server)
  --mount PATH       where to enable it (default: autopay)
  --pin              pin the version for all mounts (Vault 1.16 and later); an existing pin is always updated
  --downgrade        allow a version older than the current one
  --copy-only        check and copy without a request to Vault: for every other node of a cluster, before the active one
  --dry-run          print what would be done, and change nothing
USAGE
}

say() { printf 'install: %s\n' "$*"; }
die() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

binary='' sums='' sha256='' plugin_dir='' mount=autopay pin='' downgrade='' copy_only='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --binary | --sums | --sha256 | --plugin-dir | --mount)
      if [ $# -lt 2 ] || [ -z "$2" ]; then
        printf 'install: %s needs a value\n' "$1" >&2
        exit 2
      fi
      case $1 in
        --binary) binary=$2 ;;
        --sums) sums=$2 ;;
        --sha256) sha256=$2 ;;
        --plugin-dir) plugin_dir=$2 ;;
        --mount) mount=$2 ;;
      esac
      shift
      ;;
    --pin) pin=1 ;;
    --downgrade) downgrade=1 ;;
    --copy-only) copy_only=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      printf 'install: unknown option %s\n' "$1" >&2
      usage >&2
      exit 2
      ;;
  esac
  shift
done
mount=${mount#/}
mount=${mount%/}
unset VAULT_FORMAT BAO_FORMAT # this script reads the default output

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# ---- the binary

if [ -z "$binary" ]; then
  binary=$here/$name
  [ -f "$binary" ] || binary=$here/../bin/$name
fi
[ -f "$binary" ] || die "there is no $binary: name the plugin with --binary"
if type -P sha256sum >/dev/null; then
  sum_of() { sha256sum <"$1" | cut -d' ' -f1; }
elif type -P shasum >/dev/null; then
  sum_of() { shasum -a 256 <"$1" | cut -d' ' -f1; }
else
  die "neither sha256sum nor shasum is installed"
fi

# Do not run or copy the binary before its checksum is verified.
sum=$(sum_of "$binary")
if [ -n "$sha256" ]; then
  [ "$(tr '[:upper:]' '[:lower:]' <<<"$sha256")" = "$sum" ] || die "$binary has the checksum $sum, not $sha256"
else
  sums=${sums:-$(dirname "$binary")/SHA256SUMS}
  [ -f "$sums" ] || die "there is no $sums to check the binary against: use --sums, or --sha256 for one that you built"
  grep -q "^$sum " "$sums" || die "the checksum of $binary, $sum, is not in $sums: this is not the released file"
fi
[ -x "$binary" ] || die "$binary is not executable"
semver='^v[0-9]+\.[0-9]+\.[0-9]+'
version=$("$binary" -version) || die "$binary -version fails: is it for another platform?"
[[ $version =~ $semver ]] || die "$binary -version prints '$version', which is not a version"
command=$name-$version
say "$name $version, checksum $sum as expected"

# ---- the current state

# ask puts the server's answer into $answer, which is empty if there is no such thing.
ask() {
  answer=$("$cli" "$@" 2>"$tmp/error") && return
  answer=''
  case $(<"$tmp/error") in
    *"permission denied"*) die "the server refuses this token: $cli $* (see 'Policy for install.sh' in docs/install.md)" ;;
    *"No value found"* | *"Code: 404"* | *"not present in secret"* | *"No secret engine mount"*) ;;
    *) die "$cli $*: $(<"$tmp/error")" ;;
  esac
}

# field prints the value of one line of the table in $answer.
field() {
  local key value
  while read -r key value; do
    [ "$key" != "$1" ] || printf '%s' "$value"
  done <<<"$answer"
}

# look sets what the server says now: the checksum registered for this version, the plugin mounted at $mount, the
# version it is set to, the pinned version, and what runs.
registered='' mounted='' tuned='' pinned='' running=''
look() {
  ask plugin info -version="$version" -field=sha256 secret "$name"
  registered=$answer
  ask read -field=version "sys/plugins/pins/secret/$name"
  pinned=$answer
  ask read "sys/mounts/$mount"
  mounted=$(field type) tuned=$(field plugin_version)
  running="$(field running_plugin_version) $(field running_sha256)"
}

# older reports whether $1 is an older version than $2. It does not compare pre-releases.
older() {
  ! printf '%s\n' "${2%%[-+]*}" "${1%%[-+]*}" | sort -V -C
}

if [ -z "$copy_only" ]; then
  cli=$(type -P vault || type -P bao) || die "neither the vault nor the bao command is installed"
  cli=${cli##*/}
  code=0
  "$cli" status >"$tmp/status" 2>&1 || code=$?
  case $code in
    0) ;;
    2) die "the server is sealed or not initialized" ;;
    *) die "the server does not answer: $(<"$tmp/status")" ;;
  esac
  look
  if [ -n "$mounted" ] && [ "$mounted" != "$name" ]; then
    die "there is another secrets engine at $mount/, $mounted: choose another --mount"
  fi
  if [ -n "$registered" ] && [ "$registered" != "$sum" ]; then
    die "$version is registered with another checksum, $registered. If that was a trial build: $cli plugin deregister -version=$version secret $name"
  fi
  if [ -z "$downgrade" ] && older "$version" "${pinned:-$tuned}"; then
    die "$version is older than ${pinned:-$tuned}, the current version: use --downgrade to go back"
  fi
  if [ -z "$plugin_dir" ]; then
    ask read -field=plugin_directory sys/config/state/sanitized
    plugin_dir=$answer
    # A dev server has its -dev-plugin-dir on its command line, not in its configuration.
    if [ -z "$plugin_dir" ] && grep -q 'Storage Type *inmem' "$tmp/status" &&
      [[ $(ps -Aww -o args= 2>/dev/null) =~ -dev-plugin-dir[=\ ](/[^[:space:]]+) ]]; then
      plugin_dir=${BASH_REMATCH[1]}
    fi
    [ -n "$plugin_dir" ] || die "this server has no plugin_directory: set one in its configuration and restart it"
  fi
fi
[ -n "$plugin_dir" ] || die "--copy-only needs --plugin-dir"
[ -d "$plugin_dir" ] || die "there is no directory $plugin_dir here: run this on the server's host, or correct --plugin-dir"
target=$plugin_dir/$command
if [ -e "$target" ] && [ "$(sum_of "$target")" != "$sum" ]; then
  die "$target exists with another checksum, and may be in use. If it was a trial build, remove it first"
fi

# ---- the steps

steps=0
# step WHAT COMMAND... runs the command, or prints it on a dry run.
step() {
  steps=$((steps + 1))
  if [ -n "$dry_run" ]; then
    say "would $1: ${*:2}"
    return
  fi
  say "$1"
  "${@:2}" >"$tmp/out" 2>&1 || die "$1 failed: $(<"$tmp/out")"
}

copy() {
  # There is never half a file under the final name. Older versions stay: they may be running.
  cp "$1" "$2.new.$$" && chmod 755 "$2.new.$$" && mv "$2.new.$$" "$2"
}

if [ ! -e "$target" ]; then
  [ -n "$dry_run" ] || [ -w "$plugin_dir" ] || die "$(id -un) may not write to $plugin_dir: use sudo -E"
  step "copy it to $target" copy "$binary" "$target"
fi
if [ -z "$copy_only" ]; then
  [ -n "$registered" ] ||
    step "register it" "$cli" plugin register -sha256="$sum" -version="$version" -command="$command" secret "$name"
  reload=''
  [ -z "$mounted" ] || [ "$running" = "$version $sum" ] || reload=1
  if [ -n "$pin$pinned" ]; then
    # While a version is pinned, Vault refuses any other, and -plugin-version too.
    if [ "$pinned" != "$version" ]; then
      step "pin $version${pinned:+ instead of $pinned}" "$cli" write "sys/plugins/pins/secret/$name" version="$version"
      reload=1
    fi
    [ -n "$mounted" ] || step "enable it at $mount/" "$cli" secrets enable -path="$mount" "$name"
  elif [ -z "$mounted" ]; then
    step "enable it at $mount/" "$cli" secrets enable -path="$mount" -plugin-version="$version" "$name"
  elif [ "$tuned" != "$version" ]; then
    step "set $mount/ to $version instead of $tuned" "$cli" secrets tune -plugin-version="$version" "$mount"
  fi
  # This restarts every mount of the plugin: -mounts does not work in Vault's root namespace.
  [ -z "$reload" ] || step "reload it" "$cli" plugin reload -plugin="$name" -scope=global
fi

# ---- the result

if [ "$steps" -eq 0 ]; then
  say "nothing to do"
elif [ -n "$dry_run" ]; then
  say "nothing was changed (--dry-run)"
  exit 0
fi
if [ -z "$copy_only" ]; then
  was=$mounted
  look
  [ "$running" = "$version $sum" ] || die "$mount/ runs ${running:-nothing}, not $version: see the server's log"
  say "$mount/ runs $version"
  [ -n "$was" ] || say "next: $cli write $mount/config client_id=… client_secret=-"
fi
