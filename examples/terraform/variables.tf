variable "client_ids" {
  type        = map(string)
  description = "Client IDs that Autopay issued, by name. autopay/token serves the name default."
}

variable "client_secrets" {
  type        = map(string)
  sensitive   = true
  description = "The client secrets that go with them, by the same names."
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
