# An application: the token of the credential named oslo, and nothing else.
path "autopay/token/oslo" {
  capabilities = ["read"]
}
