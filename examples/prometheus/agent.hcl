# A Vault Agent beside Prometheus keeps a Vault token in the file that prometheus.yml names. Run it as the user that
# Prometheus runs as:
#
#   vault agent -config=agent.hcl

vault {
  address = "https://vault.example.com:8200"
}

auto_auth {
  method "approle" {
    config = {
      role_id_file_path   = "/etc/prometheus/vault/role-id"
      secret_id_file_path = "/etc/prometheus/vault/secret-id"

      # Keep the file so that Agent can log in again after a restart.
      remove_secret_id_file_after_reading = false
    }
  }

  sink "file" {
    config = {
      path = "/run/prometheus/vault-token"
      mode = 0600
    }
  }
}
