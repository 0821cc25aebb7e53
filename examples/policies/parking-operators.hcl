# A templated policy for all parking operators. The metadata of an application's identity entity selects the token:
# operator=oslo allows autopay/token/oslo. Without that metadata, the application can read nothing.
path "autopay/token/{{identity.entity.metadata.operator}}" {
  capabilities = ["read"]
}
