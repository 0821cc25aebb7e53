package manifests

import (
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestExampleGitLab parses the GitLab CI example. The job must get the one field
// as text, not as a file, and hand the token to curl on stdin.
func TestExampleGitLab(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../examples/ci/gitlab-ci.yml")
	if err != nil {
		t.Fatal(err)
	}
	type vault struct {
		Engine      struct{ Name, Path string }
		Path, Field string
	}
	var ci struct {
		Autopay struct {
			IDTokens map[string]struct{ Aud string } `json:"id_tokens"`
			Secrets  map[string]struct {
				Vault vault
				File  *bool
			}
			Variables map[string]string
			Script    []string
		}
	}
	if err := yaml.UnmarshalStrict(text, &ci); err != nil {
		t.Fatal(err)
	}
	job := ci.Autopay
	secret := job.Secrets["AUTOPAY_TOKEN"]
	want := vault{Path: "token", Field: "access_token"}
	want.Engine.Name, want.Engine.Path = "generic", "autopay"
	if secret.Vault != want || secret.File == nil || *secret.File || job.IDTokens["VAULT_ID_TOKEN"].Aud == "" {
		t.Errorf("the job gets %+v", job)
	}
	if len(job.Script) != 1 || !strings.HasPrefix(job.Script[0], `echo "Authorization: Bearer $AUTOPAY_TOKEN" | curl `) {
		t.Errorf("the job runs %q", job.Script)
	}
}
