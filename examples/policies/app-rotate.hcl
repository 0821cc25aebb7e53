# An application that may also have the token replaced, for when Autopay refuses it before its time.
# Many that do so at once cause one request: a token younger than 60 s is kept.
path "autopay/token" {
  capabilities = ["read"]
}
path "autopay/rotate" {
  capabilities = ["update"]
}
