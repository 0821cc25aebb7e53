// Package k8s is the auto_join provider for Kubernetes, left out like the others.
package k8s

type Provider struct{}
