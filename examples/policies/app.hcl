# An application: the token of the default credential, and nothing else.
path "autopay/token" {
  capabilities = ["read"]
}
