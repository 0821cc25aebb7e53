# shellcheck shell=bash
# A client of the Autopay secrets engine for bash, with curl and jq. Source this file; demo.sh shows it at work.
#
#   autopay_curl https://api.autopay.io/... || exit
#   echo "$AUTOPAY_STATUS" "$AUTOPAY_BODY"
#
# It holds a token in the shell's memory for as long as Vault says, and reads it again at the first call after that. So
# call it in the shell itself: in $(…) or a pipe, what it holds would be lost with the subshell.
#
# Of the environment it takes VAULT_ADDR, VAULT_TOKEN_FILE (which is read for each request to Vault, for Vault Agent
# renews the token in it) or VAULT_TOKEN, VAULT_NAMESPACE, AUTOPAY_MOUNT (autopay) and AUTOPAY_NAME (none). For a private
# CA set CURL_CA_BUNDLE. Do not run it under set -x, which shows the token.

AUTOPAY_TOKEN='' # not exported, so that other programs do not inherit it
autopay_until=0 autopay_next_read=0 autopay_failures=0 autopay_refused_until=0 autopay_error=''

# autopay_token sets AUTOPAY_TOKEN to a live token. Without one it fails, and says why on standard error.
autopay_token() {
  autopay_clock
  if ((autopay_now >= autopay_next_read)); then
    # With a live token in hand one short try is enough: the caller waits for it.
    if ((autopay_now < autopay_until)); then autopay_read 1 5 || :; else autopay_read 3 15 || :; fi
  fi
  ((autopay_now < autopay_until)) || {
    printf 'autopay: %s\n' "$autopay_error" >&2
    return 1
  }
}

# autopay_curl [OPTION…] URL is curl with the token. It sets AUTOPAY_STATUS and AUTOPAY_BODY. An answer 401 is given one
# more try, if Vault has another token; data from standard input (-d @-) can't be sent again.
autopay_curl() {
  local used
  AUTOPAY_STATUS='' AUTOPAY_BODY=''
  autopay_token || return
  used=$AUTOPAY_TOKEN
  autopay_send "$@" || return
  [ "$AUTOPAY_STATUS" = 401 ] || return 0
  autopay_replace
  [ "$AUTOPAY_TOKEN" != "$used" ] || return 0
  autopay_send "$@"
}

# The headers with tokens go through pipes: arguments would show in the list of processes.
autopay_send() {
  local out
  out=$(curl -sS --max-time 30 -w '\n%{http_code}' \
    -H @<(printf 'Authorization: Bearer %s\n' "$AUTOPAY_TOKEN") "$@") || return
  AUTOPAY_STATUS=${out##*$'\n'}
  # shellcheck disable=SC2034 # it is for the caller
  AUTOPAY_BODY=${out%$'\n'*}
}

# autopay_replace reads the token that the API refused again. Where it is still the same, it asks for a new one: a policy
# need not allow that, and an engine that has just obtained a token keeps it.
autopay_replace() {
  local refused=$AUTOPAY_TOKEN
  autopay_clock
  ((autopay_now >= autopay_refused_until)) || return 0
  if autopay_read 1 5 && [ "$AUTOPAY_TOKEN" = "$refused" ] && autopay_vault POST rotate 1 15; then
    autopay_read 1 5 || :
  fi
  # Vault has no other: for a while, a refusal by the API is taken as it is.
  [ "$AUTOPAY_TOKEN" != "$refused" ] || autopay_refused_until=$((autopay_now + 10))
}

# autopay_read ATTEMPTS TIMEOUT reads the token from Vault. A failure leaves the one in hand.
autopay_read() {
  local token='' ttl='' rest=''
  if autopay_vault GET token "$@"; then
    { read -r token && read -r ttl && read -r rest; } < <(printf '%s' "$autopay_answer" |
      jq -r '.data | .access_token, (.ttl | floor), ((.expire_time | fromdateiso8601) - now | floor)' 2>/dev/null) || :
    [ -n "$rest" ] || autopay_error="GET $autopay_path: no token of Autopay: check AUTOPAY_MOUNT and AUTOPAY_NAME"
  fi
  autopay_clock
  if [ -z "$rest" ]; then
    # 1, 2, 4 and so on up to 30 s.
    autopay_next_read=$((autopay_now + (autopay_failures < 5 ? 1 << autopay_failures : 30)))
    autopay_failures=$((autopay_failures + 1))
    return 1
  fi
  AUTOPAY_TOKEN=$token autopay_failures=0
  autopay_next_read=$((autopay_now + ttl + 1)) # a second more, and the engine has replaced the token that was due
  autopay_until=$((autopay_now + rest))
  # Where that is too early, this host's clock is wrong: the engine hands out live tokens only.
  ((autopay_until >= autopay_next_read)) || autopay_until=$autopay_next_read
}

# autopay_vault METHOD PATH ATTEMPTS TIMEOUT sets autopay_answer, or autopay_error. It repeats what is answered 429 or
# 5xx, or not at all.
autopay_vault() {
  local attempt out status token=${VAULT_TOKEN-}
  autopay_path=${AUTOPAY_MOUNT:-autopay}/$2${AUTOPAY_NAME:+/$AUTOPAY_NAME}
  for ((attempt = 1; attempt <= $3; attempt++)); do
    ((attempt == 1)) || sleep 1
    if [ -n "${VAULT_TOKEN_FILE-}" ] && ! token=$(cat "$VAULT_TOKEN_FILE" 2>&1); then
      autopay_error="VAULT_TOKEN_FILE: $token"
      return 1
    fi
    out=$(curl -sS --connect-timeout 3 --max-time "$4" -X "$1" -w '\n%{http_code}' -H 'X-Vault-Request: true' \
      ${VAULT_NAMESPACE:+-H "X-Vault-Namespace: $VAULT_NAMESPACE"} \
      -H @<(printf 'X-Vault-Token: %s\n' "$token") "$VAULT_ADDR/v1/$autopay_path" 2>&1) || {
      out=${out##*curl: }
      autopay_error="$1 $autopay_path: Vault can't be reached: ${out%%$'\n'*}"
      continue
    }
    status=${out##*$'\n'} autopay_answer=${out%$'\n'*}
    [ "${status:0:1}" != 2 ] || return 0
    autopay_error="$1 $autopay_path: Vault answered $status: $(printf '%s' "$autopay_answer" |
      jq -r '.errors | join("; ") | gsub("\\s+"; " ")' 2>/dev/null)" || : # a proxy's error may be no JSON
    case $status in
      429 | 5*) ;;
      403)
        autopay_error+=": check that the token for Vault is valid and has a policy with read on $autopay_path"
        return 1
        ;;
      *) return 1 ;;
    esac
  done
  return 1
}

# autopay_clock sets autopay_now, in seconds. Where there is no /proc the wall clock has to do.
autopay_clock() {
  if read -r autopay_now _ 2>/dev/null </proc/uptime; then autopay_now=${autopay_now%.*}; else autopay_now=$SECONDS; fi
}
