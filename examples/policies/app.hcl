# An application: the token of the credential without a name, and nothing else.
path "autopay/token" {
  capabilities = ["read"]
}
