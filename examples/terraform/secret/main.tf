# Writes the credentials so that their secrets enter neither the state nor the plan. Make the mount and the policies as
# ../main.tf does, without its resource "credential".
terraform {
  required_version = ">= 1.10"
}

# A provisioner can use ephemeral values. The CLI takes VAULT_ADDR and VAULT_TOKEN from Terraform's environment, and the
# credential from standard input, so that the process list does not show it.
resource "terraform_data" "credential" {
  for_each = var.client_ids

  # The credential is written again when one of these changes. If its secret is still the same, only the other fields
  # change.
  triggers_replace = [each.value, var.token_url, var.rotation_period, var.token_request_limit, var.client_secrets_version]

  provisioner "local-exec" {
    command     = "vault write \"$CONFIG_PATH\" - <<<\"$CONFIG\""
    interpreter = ["bash", "-c"]
    environment = {
      CONFIG_PATH = "${var.mount}/config/${each.key}"
      CONFIG = jsonencode({
        client_id           = each.value
        client_secret       = var.client_secrets[each.key]
        token_url           = var.token_url
        rotation_period     = var.rotation_period
        token_request_limit = var.token_request_limit
      })
    }
  }
}

variable "client_ids" {
  type        = map(string)
  description = "Client IDs that Autopay issued, by name."
}

variable "client_secrets" {
  type        = map(string)
  ephemeral   = true
  description = "The client secrets that go with them, by the same names."
}

variable "client_secrets_version" {
  type        = number
  default     = 1
  description = "Increase it with each new secret, because Terraform can't compare ephemeral values."
}

variable "mount" {
  type        = string
  default     = "autopay"
  description = "Path at which the engine is mounted."
}

variable "token_url" {
  type        = string
  default     = "https://api-auth.autopay.io/oauth/token"
  description = "Autopay's token endpoint."
}

variable "rotation_period" {
  type        = number
  default     = 0
  description = "Maximum age of a token, in seconds. 0: 75% of its lifetime."
}

variable "token_request_limit" {
  type        = number
  default     = 100
  description = "Token requests allowed in any 24 hours, for each name. 0: unlimited."
}
