#!/usr/bin/env bash
# Shows the plugin in a real Vault, from registration to a token. Prints each command as you would type it.
# `make demo` and `make dev` build bin/ and call this.
#
#   scripts/demo.sh          show everything, then clean up
#   scripts/demo.sh --dev    set everything up and keep it running until Ctrl-C
#
# If AUTOPAY_CLIENT_ID and AUTOPAY_CLIENT_SECRET are set, it uses the real Autopay, otherwise a simulator on this
# machine. Vault is VAULT_BIN, the one on PATH, or one that scripts/vault.sh builds from source.
# Everything runs on loopback in a temporary directory, which is removed at the end.
#
# shellcheck disable=SC2016 # variables in the printed commands expand in eval
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=vault-plugin-secrets-autopay
dev=
case "${1-}" in
  '') ;;
  --dev) dev=1 ;;
  *)
    echo "demo.sh: unknown option $1; the only option is --dev" >&2
    exit 2
    ;;
esac

# ---- output

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
  bold=$'\e[1m' plain=$'\e[0m'
fi
heading() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s\n' "$*"; }
fail() {
  printf '\ndemo: %s\n' "$*" >&2
  exit 1
}

# run prints a command and runs it in this shell, so that its variables stay set.
run() {
  printf '%s$ %s%s\n' "$bold" "$1" "$plain"
  eval "$1" || fail "the last command failed"
}

# ---- start and stop

tmp='' vault_pid='' sim_pid='' done=''

# stop ends a process group: it asks the leader, and kills the group after 10 s.
stop() {
  kill -TERM "$1" 2>/dev/null || true
  local tries=100
  while kill -0 "$1" 2>/dev/null && [ $((tries--)) -gt 0 ]; do sleep 0.1; done
  kill -KILL -- "-$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

cleanup() {
  local code=$?
  trap '' HUP INT TERM # a second Ctrl-C must not interrupt the cleanup
  trap - EXIT
  if [ "$code" -ne 0 ] && [ "$code" -lt 128 ] && [ -s "$tmp/vault.log" ]; then
    grep -E '\[(WARN|ERROR)\]|^Error' "$tmp/vault.log" | grep -v 'no `api_addr` value' | tail -n 15 >&2 || true
  fi
  local pid
  for pid in $(jobs -p); do stop "$pid"; done
  if [ -n "$tmp" ]; then
    rm -rf "$tmp"
    if [ -n "$done" ] && [ "$code" -eq 0 ]; then
      note "Everything has been stopped and removed. 'make dev' keeps it running for you to try."
    else
      printf '\ndemo: stopped; everything has been removed.\n' >&2
    fi
  fi
  exit "$code"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# start runs a command in the background and sets $started to its pid. It gets a process group of its own, because
# Vault starts the plugin in its group.
start() {
  local log=$1
  shift
  set -m
  "$@" >"$log" 2>&1 </dev/null &
  started=$!
  set +m
}

# until_true polls a condition every 0.2 s for at most $1 seconds.
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# ---- preparation

client_id=${AUTOPAY_CLIENT_ID-}
secret=${AUTOPAY_CLIENT_SECRET-}
unset AUTOPAY_CLIENT_ID AUTOPAY_CLIENT_SECRET # from here on, only this shell knows the secret
if [ -n "$client_id" ] && [ -n "$secret" ]; then
  real=1
elif [ -n "$client_id$secret" ]; then
  fail "set both AUTOPAY_CLIENT_ID and AUTOPAY_CLIENT_SECRET, or neither"
else
  real=''
fi

for binary in "$name" autopaysim; do
  [ -x "bin/$binary" ] || fail "bin/$binary is missing; run 'make demo' or 'make dev'"
done
if type -P sha256sum >/dev/null; then sum=sha256sum; else sum='shasum -a 256'; fi
vault_bin=$(scripts/vault.sh --any)
if type -P vault >/dev/null; then users_vault=vault; else users_vault=$vault_bin; fi

# Do not use any settings of the user's own Vault, and do not touch it.
for variable in ${!VAULT_@}; do unset "$variable"; done
tmp=$(cd "$(mktemp -d)" && pwd -P)
mkdir "$tmp/home" "$tmp/bin" "$tmp/plugins"
export HOME="$tmp/home" PATH="$tmp/bin:$PATH"
export NO_PROXY="127.0.0.1,localhost,${NO_PROXY-}" no_proxy="127.0.0.1,localhost,${no_proxy-}"
ln -s "$vault_bin" "$tmp/bin/vault"
cp "bin/$name" "$tmp/plugins/"

# Without curl, this function makes the requests below: curl -fsS [-H HEADER] URL.
if ! type -P curl >/dev/null; then
  note "curl is not installed; the shell makes the requests."
  curl() {
    local url=${*: -1} header='Accept: */*' status line
    url=${url#http://}
    [ $# -lt 4 ] || header=$3
    local host=${url%%/*}
    exec 3<>"/dev/tcp/${host%:*}/${host#*:}"
    printf 'GET /%s HTTP/1.0\r\nHost: %s\r\n%s\r\n\r\n' "${url#*/}" "$host" "$header" >&3
    read -r _ status _ <&3
    while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
    cat <&3
    exec 3>&-
    [ "$status" = 200 ]
  }
fi

sim_ready() { [ -s "$tmp/sim.url" ] || ! kill -0 "$sim_pid" 2>/dev/null; }
start_sim() {
  start "$tmp/sim.log" bin/autopaysim -listen 127.0.0.1:0 -url-file "$tmp/sim.url" \
    -client "$client_id=$secret" -lifetime "$1"
  sim_pid=$started
  if ! until_true 20 sim_ready || [ ! -s "$tmp/sim.url" ]; then
    cat "$tmp/sim.log" >&2
    fail "the simulator of Autopay did not start"
  fi
  sim=$(cat "$tmp/sim.url")
}

vault_ready() { vault status >/dev/null 2>&1 || ! kill -0 "$vault_pid" 2>/dev/null; }
start_vault() {
  # A production server's configuration has this line too.
  printf 'plugin_directory = "%s"\n' "$tmp/plugins" >"$tmp/vault.hcl"
  VAULT_TOKEN=demo-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  export VAULT_ADDR VAULT_TOKEN
  local try port
  for try in 1 2 3 4 5; do
    port=$((20000 + RANDOM % 10000)) # Vault does not accept port 0; if a port is in use, try the next
    VAULT_ADDR=http://127.0.0.1:$port
    start "$tmp/vault.log" vault server -dev -config="$tmp/vault.hcl" -dev-no-store-token \
      -dev-root-token-id="$VAULT_TOKEN" -dev-listen-address="127.0.0.1:$port"
    vault_pid=$started
    # If it accepts this run's root token, it is this run's server.
    if until_true 60 vault_ready && kill -0 "$vault_pid" 2>/dev/null && vault token lookup >/dev/null 2>&1; then
      return
    fi
    stop "$vault_pid"
    grep -q 'address already in use' "$tmp/vault.log" || break
    note "Port $port is in use; trying another one ($try)."
  done
  fail "the Vault server did not start"
}

# ---- the demo

if [ -n "$real" ]; then
  note "Autopay: the real one, with the client ID $client_id."
else
  client_id=demo-client secret=demo-secret
  if [ -n "$dev" ]; then lifetime=1h; else lifetime=40s; fi
  start_sim "$lifetime"
  note "Autopay: a simulator at $sim; its tokens live $lifetime."
fi
start_vault
version=$("bin/$name" -version)
note "Server: $(vault version | cut -d, -f1) in dev mode at $VAULT_ADDR, with bin/$name $version in its plugin directory."

heading "Register the plugin and enable it"
run "SHA256=\$($sum bin/$name | cut -d' ' -f1)"
run "vault plugin register -sha256=\"\$SHA256\" -version=$version secret $name"
run "vault secrets enable -path=autopay $name"

heading "Write a credential: the engine verifies it and never shows its secret again"
AUTOPAY_CLIENT_SECRET=$secret # not exported; printf is a shell builtin, so no process list shows it
config="client_id=$client_id client_secret=-"
[ -n "$real" ] || config="$config token_url=$sim/oauth/token"
run "printf %s \"\$AUTOPAY_CLIENT_SECRET\" | vault write autopay/config $config"
unset AUTOPAY_CLIENT_SECRET secret
run 'vault read autopay/config'

heading "Let an application read the token and nothing else"
run "vault policy write autopay-reader - <<'POLICY'
path \"autopay/token\" {
  capabilities = [\"read\"]
}
POLICY"
run 'APP_TOKEN=$(vault token create -policy=autopay-reader -ttl=1h -field=token)'

heading "What the application does"
if [ -n "$real" ]; then
  printf '%s$ %s%s\n' "$bold" 'VAULT_TOKEN=$APP_TOKEN vault read autopay/token' "$plain"
  # Print only the first characters of a real account's token.
  VAULT_TOKEN=$APP_TOKEN vault read autopay/token |
    sed -E 's/^(access_token +)(.{8}).*/\1\2… (shortened)/' || fail "the last command failed"
else
  run 'VAULT_TOKEN=$APP_TOKEN vault read autopay/token'
  run 'TOKEN=$(VAULT_TOKEN=$APP_TOKEN vault read -field=access_token autopay/token)'
  run "curl -fsS -H \"Authorization: Bearer \$TOKEN\" $sim/v1/whoami"
fi

if [ -n "$dev" ]; then
  heading "Running until Ctrl-C. In another terminal:"
  note "export VAULT_ADDR=$VAULT_ADDR"
  note "export VAULT_TOKEN=$VAULT_TOKEN"
  note "$users_vault read autopay/token"
  trap 'exit 0' INT # this is the normal way to end it
  wait "$vault_pid" || true
  fail "the Vault server has ended"
fi

if [ -z "$real" ]; then
  heading "The token is replaced before it expires"
  last_rotation() { VAULT_TOKEN=$APP_TOKEN vault read -field=last_vault_rotation autopay/token; }
  reads=2 first=$(last_rotation)
  ttl=$(VAULT_TOKEN=$APP_TOKEN vault read -field=ttl autopay/token)
  reads=$((reads + 2))
  note "The next token is due in $ttl s. Reading every second until last_vault_rotation changes:"
  end=$((SECONDS + 60)) now=$first
  while [ "$now" = "$first" ]; do
    [ "$SECONDS" -lt "$end" ] || fail "no new token after 60 s"
    sleep 1
    now=$(last_rotation) || fail "a read failed"
    reads=$((reads + 1))
    printf .
  done
  printf '\n'
  run 'VAULT_TOKEN=$APP_TOKEN vault read autopay/token'
  run 'TOKEN=$(VAULT_TOKEN=$APP_TOKEN vault read -field=access_token autopay/token)'
  run "curl -fsS -H \"Authorization: Bearer \$TOKEN\" $sim/v1/whoami"
  reads=$((reads + 2))
fi

heading "What an operator sees"
run 'vault read autopay/status'
if [ -z "$real" ]; then
  run "curl -fsS $sim/sim/stats"
  requests=$(curl -fsS "$sim/sim/stats" | sed -n 's/^{"token_requests":\([0-9]*\),.*/\1/p')
  [ -n "$requests" ] || fail "the simulator's counters lack token_requests"
  heading "Done: $reads reads of the token, $requests requests to Autopay"
else
  heading "Done"
fi
done=1
