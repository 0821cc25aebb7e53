#!/usr/bin/env bash
# A wrapper of curl that adds the token from Vault, for scripts and cron jobs: autopay-curl.sh [OPTION…] https://api.autopay.io/…
# It exits with a code other than 0 if Vault or the API refuses. Neither token is in the arguments of a program. Do not run it
# with bash -x, which shows them.
set -euo pipefail

vault_token=${VAULT_TOKEN-$(cat "$VAULT_TOKEN_FILE")} # the file is the sink of a Vault Agent
token=$(curl -sS --fail-with-body --retry 3 --max-time 30 -H @<(printf 'X-Vault-Token: %s' "$vault_token") \
  "$VAULT_ADDR/v1/${AUTOPAY_PATH:-autopay/token}" |
  jq -rs 'last | .data.access_token // error((.errors // ["no token"]) | join("; "))')
curl -sS --fail-with-body -H @<(printf 'Authorization: Bearer %s' "$token") "$@"
