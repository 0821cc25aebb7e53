#!/usr/bin/env bash
# Sets up AppRole for one application on this host, with one policy.
#
#   approle.sh ROLE POLICY.hcl DIR [OPERATOR]
#   approle.sh shop ../policies/app.hcl /etc/autopay
#   approle.sh shop-oslo ../policies/parking-operators.hcl /etc/autopay oslo
#
# Writes role-id and secret-id to DIR, readable only by the user who runs the script. OPERATOR becomes the metadata
# "operator" of the role's identity entity, for the templated policy. VAULT_ADDR and VAULT_TOKEN must be an
# administrator's. Run it again for a new secret-id; the old ones stay valid until you destroy them.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: approle.sh ROLE POLICY.hcl DIR [OPERATOR]" >&2
  exit 2
fi
role=$1 policy=$2 dir=$3 operator=${4-}
name=autopay-$(basename "$policy" .hcl)

vault policy write "$name" "$policy"
vault read sys/auth/approle >/dev/null 2>&1 || vault auth enable approle

# A periodic token, which Agent can renew forever.
vault write "auth/approle/role/$role" token_policies="$name" token_period=1h

umask 077
mkdir -p "$dir"
vault read -field=role_id "auth/approle/role/$role/role-id" >"$dir/role-id"
vault write -force -field=secret_id "auth/approle/role/$role/secret-id" >"$dir/secret-id"

if [ -n "$operator" ]; then
  vault write "identity/entity/name/$role" metadata="operator=$operator"
  vault write identity/entity-alias name="$(cat "$dir/role-id")" \
    canonical_id="$(vault read -field=id "identity/entity/name/$role")" \
    mount_accessor="$(vault read -field=accessor sys/auth/approle)"
fi
