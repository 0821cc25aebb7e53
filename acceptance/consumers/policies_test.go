//go:build acceptance

package consumers

import (
	"net/http"
	"path/filepath"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// examplePolicy returns a token whose only policy is one of the examples'.
func examplePolicy(t *testing.T, m harness.Mount, file string) string {
	t.Helper()
	return m.TokenFor(t, example(t, "policies/"+file))
}

// TestExamplePolicies tries what each policy should allow, and what it must not.
func TestExamplePolicies(t *testing.T) {
	t.Parallel()
	m, p := exampleVault(t), harness.StartAutopay(t)
	for _, name := range []string{"", "oslo", "bergen"} {
		m.MustWrite(t, harness.ConfigPath(name), p.NewCredential().Config())
	}

	const ok, no = http.StatusOK, http.StatusForbidden
	policies := map[string]map[string]int{
		"app.hcl": {
			"GET token":         ok,
			"GET token/default": no,
			"GET token/oslo":    no,
			"PUT token":         no,
			"PUT rotate":        no,
			"GET status":        no,
			"GET config":        no,
			"PUT config":        no,
			"DELETE config":     no,
			"LIST config":       no,
		},
		"app-oslo.hcl": {
			"GET token/oslo":   ok,
			"GET token":        no,
			"GET token/bergen": no,
			"GET token/oslo2":  no,
			"PUT rotate/oslo":  no,
			"GET status/oslo":  no,
			"GET config/oslo":  no,
			"PUT config/oslo":  no,
		},
		"app-rotate.hcl": {
			"GET token":       ok,
			"PUT rotate":      ok,
			"GET token/oslo":  no,
			"PUT rotate/oslo": no,
			"GET status":      no,
			"GET config":      no,
			"PUT config":      no,
		},
		"vault-operator.hcl": {
			"GET config":       ok,
			"GET config/oslo":  ok,
			"LIST config":      ok,
			"GET status":       ok,
			"GET status/oslo":  ok,
			"GET metrics":      ok,
			"PUT rotate":       ok,
			"PUT rotate/oslo":  ok,
			"PUT config/new":   http.StatusBadRequest, // allowed, but client_id is missing
			"DELETE config/no": http.StatusNoContent,
			"GET token":        no,
			"GET token/oslo":   no,
		},
		"metrics.hcl": {
			"GET metrics": ok,
			"GET token":   no,
			"GET status":  no,
			"GET config":  no,
		},
		// The token has no entity, so this policy allows nothing.
		"parking-operators.hcl": {
			"GET token":      no,
			"GET token/":     no,
			"GET token/oslo": no,
		},
	}
	files, err := filepath.Glob("../../examples/policies/*")
	if err != nil || len(files) != len(policies) {
		t.Errorf("%d policies, %d of them tested (%v)", len(files), len(policies), err)
	}
	for file, wants := range policies {
		t.Run(file, func(t *testing.T) { m.As(examplePolicy(t, m, file)).WantCodes(t, wants) })
	}

	// Two applications with the same policy, each for its parking operator.
	for operator, other := range map[string]string{"oslo": "bergen", "bergen": "oslo"} {
		t.Run("parking-operators.hcl of "+operator, func(t *testing.T) {
			app := login(t, m.Server, appRole(t, m.Server, "shop-"+operator, "parking-operators.hcl", operator))
			m.As(app).WantCodes(t, map[string]int{
				"GET token/" + operator:  ok,
				"GET token/" + other:     no,
				"GET token":              no,
				"GET token/default":      no,
				"PUT rotate/" + operator: no,
				"GET status/" + operator: no,
				"GET config/" + operator: no,
				"PUT config/" + operator: no,
			})
		})
	}
}
