# One policy for all parking operators. An application reads the token that the metadata of its identity entity names:
# operator=oslo allows autopay/token/oslo. Without that metadata it can read nothing.
path "autopay/token/{{identity.entity.metadata.operator}}" {
  capabilities = ["read"]
}
