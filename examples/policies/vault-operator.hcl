# Whoever runs the engine: configures, replaces tokens and watches, but reads no token and gets no secret back.
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
