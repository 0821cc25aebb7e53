# An application that may also replace the token, for when Autopay refuses it early. Many such requests at the same time
# cause one rotation, because a token younger than 60 seconds is kept.
path "autopay/token" {
  capabilities = ["read"]
}
path "autopay/rotate" {
  capabilities = ["update"]
}
