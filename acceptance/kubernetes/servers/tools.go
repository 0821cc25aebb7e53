//go:build tools

// Package servers pins etcd, kube-apiserver and kubectl, which the tests of
// examples/kubernetes build. It lives in a module of its own so that their
// dependencies meet nobody else's.
package servers

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
