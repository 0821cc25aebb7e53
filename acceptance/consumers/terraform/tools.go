//go:build tools

// Package terraform pins the Terraform provider that the acceptance tests
// build. It lives in a module of its own so that its dependencies meet nobody
// else's.
package terraform

import _ "github.com/hashicorp/terraform-provider-vault"
