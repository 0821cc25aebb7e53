# Prometheus: the metrics, and nothing else. They hold no secret and no token.
path "autopay/metrics" {
  capabilities = ["read"]
}
