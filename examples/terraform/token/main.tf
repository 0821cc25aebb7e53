# The token, for use within one run of Terraform: it enters neither the state nor the plan.
terraform {
  required_version = ">= 1.10"
  required_providers {
    vault = {
      source  = "hashicorp/vault"
      version = ">= 5.8"
    }
  }
}

ephemeral "vault_generic_secret" "autopay" {
  path = "autopay/token"
}

# You can pass ephemeral values to a provider's configuration, a write-only argument or a provisioner, as here.
resource "terraform_data" "whoami" {
  provisioner "local-exec" {
    command     = "curl --fail --header @- $API_URL <<<\"Authorization: Bearer $AUTOPAY_TOKEN\""
    interpreter = ["bash", "-c"]
    environment = {
      API_URL       = var.api_url
      AUTOPAY_TOKEN = ephemeral.vault_generic_secret.autopay.data["access_token"]
    }
  }
}

variable "api_url" {
  type        = string
  description = "URL of the Autopay API to call."
}
