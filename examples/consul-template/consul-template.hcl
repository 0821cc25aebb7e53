# consul-template keeps the token in a file. It takes its Vault token from VAULT_TOKEN:
#
#   consul-template -config=consul-template.hcl

vault {
  address = "https://vault.example.com:8200"

  # Retry forever. By default consul-template exits with code 14 after 12 retries, about 6 minutes after the token
  # has expired in a long outage.
  retry {
    attempts = 0
  }
}

# Render access_token but not ttl, so that the file changes only when the token does.
template {
  contents             = "{{ with secret \"autopay/token\" }}{{ .Data.access_token }}{{ end }}"
  destination          = "/run/shop/autopay-token"
  perms                = "0640"
  error_on_missing_key = true
}
