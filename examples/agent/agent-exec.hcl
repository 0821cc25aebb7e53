# Vault Agent runs the application with the token in its environment, and restarts it when the token is replaced:
#
#   vault agent -config=agent-exec.hcl

vault {
  address = "https://vault.example.com:8200"

  # After its last retry in a long outage (the default is 12), Vault Agent 1.21 starts over and prints the next token to its
  # standard output.
  retry {
    num_retries = 10000
  }
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

# Render access_token but not ttl. Agent restarts the application whenever a rendered value changes.
env_template "AUTOPAY_TOKEN" {
  contents             = "{{ with secret \"autopay/token\" }}{{ .Data.access_token }}{{ end }}"
  error_on_missing_key = true
}

exec {
  command                   = ["/usr/local/bin/shop"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}
