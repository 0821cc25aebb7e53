//go:build acceptance

package acceptance

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
)

var updateGolden = flag.Bool("update", false, "write what the server says to testdata instead of comparing")

// TestOpenAPI holds the document that Vault makes of the mount to a golden
// file. After a change that is meant: go test -run TestOpenAPI … -update, and
// read the difference.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	const golden = "testdata/openapi.json"
	m := enable(t, sharedVault(t))
	a, err := m.call(t.Context(), m.keys.root, http.MethodGet, "sys/internal/specs/openapi", nil)
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("%v %v", a, err)
	}
	var document struct {
		Paths      map[string]any
		Components struct{ Schemas map[string]any }
	}
	// The mount's path is the test's own.
	body := bytes.ReplaceAll([]byte(a.body), []byte(m.at), []byte("autopay"))
	if err := json.Unmarshal(body, &document); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(document.Paths, func(path string, _ any) bool { return !strings.HasPrefix(path, "/autopay/") })
	maps.DeleteFunc(document.Components.Schemas, func(name string, _ any) bool { return !strings.HasPrefix(name, "Autopay") })
	got, err := json.MarshalIndent(map[string]any{"paths": document.Paths, "schemas": document.Components.Schemas}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *updateGolden {
		if err := os.WriteFile(golden, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the OpenAPI document differs from %s:\n%s", golden, difference(string(want), string(got)))
	}
}

// difference is the first lines in which two texts differ.
func difference(want, got string) string {
	wants, gots := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(wants), len(gots)) {
		if wants[i] != gots[i] {
			return "- " + strings.Join(wants[i:min(i+3, len(wants))], "\n- ") + "\n+ " + strings.Join(gots[i:min(i+3, len(gots))], "\n+ ")
		}
	}
	return "one ends before the other"
}
