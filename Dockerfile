# An image that holds a released binary and nothing else, for Vault's containerised plugins and OpenBao's OCI plugins:
#
#   make release PLATFORMS=linux/amd64 && docker build -t vault-plugin-secrets-autopay:0.1.0 .
#
# docs/install.md says how to use it.
FROM alpine:3.22 AS roots

FROM scratch
LABEL org.opencontainers.image.title="vault-plugin-secrets-autopay" \
  org.opencontainers.image.licenses="MPL-2.0"
# Autopay's certificate is checked against these. In a container there are no others.
COPY --from=roots /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# The bytes that SHA256SUMS names. OpenBao looks for the binary in the image's root.
ARG TARGETARCH
COPY dist/vault-plugin-secrets-autopay_*_linux_${TARGETARCH} /vault-plugin-secrets-autopay
# By number: there is no /etc/passwd.
USER 65532:65532
ENTRYPOINT ["/vault-plugin-secrets-autopay"]
