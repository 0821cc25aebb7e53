#!/usr/bin/env bash
# Calls API_URL every INTERVAL_MS, COUNT times or until it is told to stop, and prints one line for each call: the
# status, or what went wrong. With API_BODY it is a POST.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "${BASH_SOURCE[0]}")/tokensource.sh"

interval=${INTERVAL_MS:-1000}
stopped=''
trap 'stopped=1' INT TERM

for ((i = 0; i < ${COUNT:-0} || ${COUNT:-0} == 0; i++)); do
  [ -z "$stopped" ] || break
  if autopay_curl ${API_BODY:+-d "$API_BODY"} "$API_URL" 2>&1; then
    echo "$AUTOPAY_STATUS"
  fi
  sleep "$((interval / 1000)).$(printf %03d $((interval % 1000)))"
done
