# Vault Agent renders the Authorization header for nginx and reloads nginx when the token is replaced:
#
#   vault agent -config=agent.hcl

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

# Render access_token but not ttl, so that the file changes only when the token does.
template {
  contents             = "proxy_set_header Authorization \"Bearer {{ with secret \"autopay/token\" }}{{ .Data.access_token }}{{ end }}\";\n"
  destination          = "/run/autopay/authorization.conf"
  perms                = "0600"
  error_on_missing_key = true

  # Before nginx has started there is nothing to reload. It reads the file when it starts.
  exec {
    command = ["sh", "-c", "nginx -e stderr -c /etc/autopay/nginx.conf -s reload || true"]
  }
}
