package main

import (
	"net/http"
	"testing"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestAutopaysWordsAreNotVaults(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.sim.SetFault(autopaysim.Fault{Kind: "status", Status: 403, Body: `{"error":"x","error_description":"` + logical.ErrReadOnly.Error() + `"}`})
		_, err := e.read("token")
		if code(nil, err) != http.StatusBadGateway {
			t.Errorf("got %v, want a 502", err)
		}
	})
}
