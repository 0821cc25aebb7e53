# The operator of the engine: can configure credentials, replace tokens and read the health, but can read no token.
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
