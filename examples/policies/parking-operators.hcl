# One policy for any number of parking operators: whoever logs in reads the token that is named in the metadata of
# its own identity entity, operator=oslo for autopay/token/oslo. Without that metadata it reads nothing.
path "autopay/token/{{identity.entity.metadata.operator}}" {
  capabilities = ["read"]
}
