//go:build acceptance

package engine

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"net/http"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

var updateGolden = flag.Bool("update", false, "write what the server says to testdata instead of comparing")

// TestOpenAPI compares the document that Vault makes of the mount with a golden
// file. After an intended change, run the test with -update and review the
// difference.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	const golden = "testdata/openapi.json"
	// A server of its own: Vault asks all mounts for their part, and fails if one is being disabled.
	m := harness.Enable(t, harness.StartVault(t))
	a, err := m.Call(t.Context(), m.RootToken, http.MethodGet, "sys/internal/specs/openapi", nil)
	if err != nil || a.Status != http.StatusOK {
		t.Fatalf("%v %v", a, err)
	}
	var document struct {
		Paths      map[string]any
		Components struct{ Schemas map[string]any }
	}
	// The path of the mount is random.
	body := bytes.ReplaceAll([]byte(a.Body), []byte(m.At), []byte("autopay"))
	if err := json.Unmarshal(body, &document); err != nil {
		t.Fatal(err)
	}
	paths, schemas := document.Paths, document.Components.Schemas
	maps.DeleteFunc(paths, func(path string, _ any) bool { return !strings.HasPrefix(path, "/autopay/") })
	maps.DeleteFunc(schemas, func(name string, _ any) bool { return !strings.HasPrefix(name, "Autopay") })
	got, err := json.MarshalIndent(map[string]any{"paths": paths, "schemas": schemas}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *updateGolden {
		harness.WriteFile(t, golden, got, 0o600)
	}
	want := harness.ReadFile(t, golden)
	if !bytes.Equal(got, want) {
		t.Errorf("the OpenAPI document differs from %s; -update writes it, and git diff shows the difference", golden)
	}
}
