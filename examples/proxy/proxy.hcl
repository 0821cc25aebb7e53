# Vault Proxy logs in for the application, which reads the token without a Vault token of its own:
#
#   vault proxy -config=proxy.hcl
#   curl -H "X-Vault-Request: true" http://127.0.0.1:8100/v1/autopay/token

vault {
  address = "https://vault.example.com:8200"

  # By default, Proxy repeats a request that gets a 5xx 12 times. The application then waits a minute and gets a 500
  # without Vault's error.
  retry {
    num_retries = 2
  }
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/autopay/role-id"
      secret_id_file_path = "/etc/autopay/secret-id"

      # Keep the file so that Proxy can log in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }
}

# Proxy adds its own Vault token to requests without one.
api_proxy {
  use_auto_auth_token = true
}

listener "tcp" {
  address     = "127.0.0.1:8100"
  tls_disable = true

  # Refuse requests that another program was tricked into sending. Vault's clients set X-Vault-Request.
  require_request_header = true
}
