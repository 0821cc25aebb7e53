# Vault Agent keeps the token in a file:
#
#   vault agent -config=agent-template.hcl

vault {
  address = "https://vault.example.com:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/autopay/role-id"
      secret_id_file_path = "/etc/autopay/secret-id"

      # Keep the file so that Agent can log in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }
}

# Render access_token but not ttl, so that the file changes only when the token does. Agent replaces the file in one step:
# a reader finds the old token or the new one, never a part of either.
template {
  contents             = "{{ with secret \"autopay/token\" }}{{ .Data.access_token }}{{ end }}"
  destination          = "/run/shop/autopay-token"
  perms                = "0640"
  error_on_missing_key = true
}
