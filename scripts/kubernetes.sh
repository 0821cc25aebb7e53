#!/usr/bin/env bash
# Prints a PATH with what the Kubernetes suite runs, each built when the cache has none: etcd, kube-apiserver,
# kubectl, External Secrets, and Vault's Kubernetes auth method, which our build of Vault leaves out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

servers=acceptance/kubernetes/servers
stripped=(-trimpath -ldflags '-s -w')
kubernetes=(-trimpath -ldflags '-s -w -X k8s.io/component-base/version.gitVersion=VERSION')
auth=github.com/hashicorp/vault-plugin-auth-kubernetes
operator=github.com/external-secrets/external-secrets

path=
add() {
  local program
  program=$(scripts/published.sh "$@")
  path=$path${path:+:}$(dirname "$program")
}
add etcd go.etcd.io/etcd/server/v3 $servers "half a minute" go.etcd.io/etcd/server/v3 "${stripped[@]}"
add kube-apiserver k8s.io/kubernetes $servers "3 minutes" k8s.io/kubernetes/cmd/kube-apiserver "${kubernetes[@]}"
add kubectl k8s.io/kubernetes $servers "half a minute" k8s.io/kubernetes/cmd/kubectl "${kubernetes[@]}"
add vault-plugin-auth-kubernetes $auth acceptance/vault "half a minute" $auth/cmd/vault-plugin-auth-kubernetes "${stripped[@]}"
add external-secrets $operator acceptance/kubernetes/externalsecrets "3 minutes" $operator "${stripped[@]}"
printf '%s\n' "$path"
