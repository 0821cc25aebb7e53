# The operator of the engine: can configure credentials, rotate tokens and read the status, but can't read tokens.
path "autopay/config" {
  capabilities = ["create", "read", "update", "delete", "list"]
}
path "autopay/config/*" {
  capabilities = ["create", "read", "update", "delete"]
}
path "autopay/rotate" {
  capabilities = ["update"]
}
path "autopay/rotate/*" {
  capabilities = ["update"]
}
path "autopay/status" {
  capabilities = ["read"]
}
path "autopay/status/*" {
  capabilities = ["read"]
}
path "autopay/metrics" {
  capabilities = ["read"]
}
