# Vault Agent runs the application with the token in its environment, and starts it again when that is replaced:
#
#   vault agent -config=agent-exec.hcl

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

# Render access_token and never ttl: with every change of a value the application is started again.
env_template "AUTOPAY_TOKEN" {
  contents             = "{{ with secret \"autopay/token\" }}{{ .Data.access_token }}{{ end }}"
  error_on_missing_key = true
}

exec {
  command                   = ["/usr/local/bin/shop"]
  restart_on_secret_changes = "always"
  restart_stop_signal       = "SIGTERM"
}
