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

      # Kept, so that Agent can start again by itself.
      remove_secret_id_file_after_reading = false
    }
  }
}

# Render access_token and never ttl: the file then changes when the token does, and only then. It is replaced at
# once (written beside, then renamed), so that a reader finds the old token or the new one, whole.
template {
  contents             = "{{ with secret \"autopay/token\" }}{{ .Data.access_token }}{{ end }}"
  destination          = "/run/shop/autopay-token"
  perms                = "0640"
  error_on_missing_key = true
}
