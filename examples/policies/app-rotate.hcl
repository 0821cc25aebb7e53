# An application that can also rotate the token, in case Autopay rejects it before it expires. Many such requests at the same
# time cause one rotation, because the engine keeps a token that is less than 60 seconds old.
path "autopay/token" {
  capabilities = ["read"]
}
path "autopay/rotate" {
  capabilities = ["update"]
}
