#!/usr/bin/env bash
# Installs the plugin into a running Vault, or upgrades it there: checks the binary's checksum, copies it into the plugin
# directory under its version, registers it, enables it or moves the mount to the new version, and reloads it.
# What is done already is left alone, so it is safe to run again. Needs bash, vault, and sha256sum or shasum.
# See docs/install.md.
set -euo pipefail

name=vault-plugin-secrets-autopay
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<USAGE
usage: install.sh [options]

Run it on the Vault server's host, with VAULT_ADDR and VAULT_TOKEN set as for the vault command.

  --binary FILE      the plugin (default: $name beside this script, or in ../bin)
  --sums FILE        the release's SHA256SUMS, which must hold the binary's checksum (default: beside the binary)
  --sha256 SUM       the checksum that the binary must have, instead of --sums
  --plugin-dir DIR   Vault's plugin_directory (default: what the server says)
  --mount PATH       where to enable it (default: autopay)
  --copy-only        check and copy, and don't talk to Vault: for each further node of a cluster, before the last one
  --dry-run          say what would be done, and change nothing
USAGE
}

say() { printf 'install: %s\n' "$*"; }
die() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

binary='' sums='' sha256='' plugin_dir='' mount=autopay copy_only='' dry_run=''
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
unset VAULT_FORMAT # the answers are read as they are by default

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

# Nothing of the binary runs, and nothing of it is copied, before its checksum is known to be right.
sum=$(sum_of "$binary")
if [ -n "$sha256" ]; then
  [ "$(tr '[:upper:]' '[:lower:]' <<<"$sha256")" = "$sum" ] || die "$binary has the checksum $sum, not $sha256"
else
  sums=${sums:-$(dirname "$binary")/SHA256SUMS}
  [ -f "$sums" ] || die "there is no $sums to check the binary against: use --sums, or --sha256 for one that you built"
  grep -q "^$sum " "$sums" || die "the checksum of $binary, $sum, is not in $sums: it is not what was released"
fi
[ -x "$binary" ] || die "$binary is not executable"
version=$("$binary" -version) || die "$binary -version fails: is it for another platform?"
[[ $version =~ ^v[0-9]+\.[0-9]+\.[0-9]+ ]] || die "$binary -version prints '$version', which is no version"
command=$name-$version
say "$name $version, checksum $sum as expected"

# ---- what there is

# ask leaves Vault's answer in $answer, empty if there is nothing of what was asked for.
ask() {
  answer=$(vault "$@" 2>"$tmp/error") && return
  answer=''
  case $(<"$tmp/error") in
    *"permission denied"*) die "Vault refuses this token: vault $* (see 'What the token must be allowed' in docs/install.md)" ;;
    *"No value found"* | *"Code: 404"* | *"not present in secret"* | *"No secret engine mount"*) ;;
    *) die "vault $*: $(<"$tmp/error")" ;;
  esac
}

# field prints one line's value of the table in $answer.
field() {
  local key value
  while read -r key value; do
    [ "$key" != "$1" ] || printf '%s' "$value"
  done <<<"$answer"
}

registered='' mounted='' pinned='' running=''
look() {
  ask plugin info -version="$version" -field=sha256 secret "$name"
  registered=$answer
  ask read "sys/mounts/$mount"
  mounted=$(field type) pinned=$(field plugin_version)
  running="$(field running_plugin_version) $(field running_sha256)"
}

if [ -z "$copy_only" ]; then
  type -P vault >/dev/null || die "the vault command is not installed"
  code=0
  vault status >"$tmp/status" 2>&1 || code=$?
  case $code in
    0) ;;
    2) die "Vault at ${VAULT_ADDR:-its default address} is sealed, or not initialised" ;;
    *) die "Vault does not answer: $(<"$tmp/status")" ;;
  esac
  look
  if [ -n "$mounted" ] && [ "$mounted" != "$name" ]; then
    die "at $mount/ there is another secrets engine, $mounted: choose another --mount"
  fi
  if [ -n "$registered" ] && [ "$registered" != "$sum" ]; then
    die "$version is registered with another checksum, $registered. If that was a trial build: vault plugin deregister -version=$version secret $name"
  fi
  if [ -z "$plugin_dir" ]; then
    ask read -field=plugin_directory sys/config/state/sanitized
    plugin_dir=$answer
    [ -n "$plugin_dir" ] || die "this Vault server has no plugin_directory: set one in its configuration and restart it"
  fi
fi
[ -n "$plugin_dir" ] || die "--copy-only needs --plugin-dir"
[ -d "$plugin_dir" ] || die "there is no directory $plugin_dir here: run this on the Vault server's host, or correct --plugin-dir"
target=$plugin_dir/$command
if [ -e "$target" ] && [ "$(sum_of "$target")" != "$sum" ]; then
  die "$target is there with another checksum; Vault may be using it. If it was a trial build, remove it first"
fi

# ---- what is to be done

steps=0
# step says what is done and does it: step WHAT COMMAND...
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
  # Under its name there is never half a file. An old version stays as it is: Vault may be running it.
  cp "$1" "$2.new.$$" && chmod 755 "$2.new.$$" && mv "$2.new.$$" "$2"
}

if [ ! -e "$target" ]; then
  [ -n "$dry_run" ] || [ -w "$plugin_dir" ] || die "$plugin_dir may not be written to by $(id -un): use sudo -E"
  step "copy it to $target" copy "$binary" "$target"
fi
if [ -z "$copy_only" ]; then
  if [ -z "$registered" ]; then
    step "register it" vault plugin register -sha256="$sum" -version="$version" -command="$command" secret "$name"
  fi
  if [ -z "$mounted" ]; then
    step "enable it at $mount/" vault secrets enable -path="$mount" -plugin-version="$version" "$name"
  else
    if [ "$pinned" != "$version" ]; then
      step "set the version of $mount/, which was $pinned" vault secrets tune -plugin-version="$version" "$mount"
    fi
    if [ "$running" != "$version $sum" ]; then
      # -mounts is broken in Vault's command line. Other mounts of the plugin restart, too, at their own version.
      step "reload it, which ran ${running% *}" vault plugin reload -plugin="$name"
    fi
  fi
fi

# ---- what has become of it

if [ "$steps" -eq 0 ]; then
  say "nothing to do"
elif [ -n "$dry_run" ]; then
  say "nothing was changed (--dry-run)"
  exit 0
fi
if [ -z "$copy_only" ]; then
  new=$mounted
  look
  [ "$running" = "$version $sum" ] || die "$mount/ runs ${running:-nothing}, not $version: see the server's log"
  say "$mount/ runs $version"
  [ -n "$new" ] || say "next: vault write $mount/config client_id=… client_secret=-"
fi
