terraform {
  required_version = ">= 1.3"
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 3.3"
    }
  }
}

# The address and the token come from VAULT_ADDR and VAULT_TOKEN.
provider "vault" {}

resource "vault_mount" "autopay" {
  path        = var.mount
  type        = "vault-plugin-secrets-autopay"
  description = "Bearer tokens for the Autopay APIs"
}

# One credential for each name.
resource "vault_generic_endpoint" "credential" {
  for_each = var.client_ids
  path     = "${vault_mount.autopay.path}/config/${each.key}"

  # A read returns everything except the secret. With this, the provider compares only the fields that a read returns, and
  # takes the secret from its state.
  ignore_absent_fields = true

  # Durations are in seconds, as a read returns them: "18h" would cause a diff in every plan.
  data_json = jsonencode({
    client_id           = each.value
    client_secret       = var.client_secrets[each.key]
    token_url           = var.token_url
    rotation_period     = var.rotation_period
    token_request_limit = var.token_request_limit
  })
}

# The credentials as a read shows them, without their secrets.
data "vault_generic_secret" "config" {
  for_each   = var.client_ids
  path       = "${vault_mount.autopay.path}/config/${each.key}"
  depends_on = [vault_generic_endpoint.credential]
}

# If somebody replaces a secret by hand, the next plan shows a change here.
output "client_secret_updated_time" {
  value = { for name, config in data.vault_generic_secret.config : name => nonsensitive(config.data["client_secret_updated_time"]) }
}

# autopay-app-NAME: the token of one name, and nothing else.
resource "vault_policy" "app" {
  for_each = var.client_ids
  name     = "${var.mount}-app-${each.key}"

  # Policies treat token and token/default as separate paths.
  policy = <<-POLICY
    path "${vault_mount.autopay.path}/token${each.key == "default" ? "" : "/${each.key}"}" {
      capabilities = ["read"]
    }
  POLICY
}

# autopay-operator: credentials, rotation and health, but no token.
resource "vault_policy" "operator" {
  name   = "${var.mount}-operator"
  policy = <<-POLICY
    path "${vault_mount.autopay.path}/config" {
      capabilities = ["create", "read", "update", "delete", "list"]
    }
    path "${vault_mount.autopay.path}/config/*" {
      capabilities = ["create", "read", "update", "delete"]
    }
    path "${vault_mount.autopay.path}/rotate" {
      capabilities = ["update"]
    }
    path "${vault_mount.autopay.path}/rotate/*" {
      capabilities = ["update"]
    }
    path "${vault_mount.autopay.path}/status" {
      capabilities = ["read"]
    }
    path "${vault_mount.autopay.path}/status/*" {
      capabilities = ["read"]
    }
  POLICY
}
