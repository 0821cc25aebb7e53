# An application: the token of the credential oslo, and nothing else.
path "autopay/token/oslo" {
  capabilities = ["read"]
}
