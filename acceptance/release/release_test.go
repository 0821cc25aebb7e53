//go:build acceptance

package release

import (
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

var (
	releaseName = harness.PluginName + "_" + strings.TrimPrefix(sourceVersion(), "v")
	// releaseBase is the prefix of the names of this platform's release files.
	releaseBase = releaseName + "_" + runtime.GOOS + "_" + runtime.GOARCH
	// releaseImage is the container image. A release without Linux has none.
	releaseImage = releaseName + "_image.tar"
)

// sourceVersion returns the version in the source.
func sourceVersion() string {
	source, err := os.ReadFile("../../client.go")
	if err != nil {
		return err.Error()
	}
	_, rest, _ := strings.Cut(string(source), "\nvar version = \"")
	version, _, _ := strings.Cut(rest, "\"\n")
	return version
}

// release returns the directory with the files of a release for this platform,
// which scripts/release.sh made.
func release(t *testing.T) string {
	t.Helper()
	return harness.Tool(t, "release")
}

// untar unpacks an archive, compressed or not.
func untar(t *testing.T, archive, dir string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
}

// TestReleaseFiles checks what scripts/release.sh made.
func TestReleaseFiles(t *testing.T) {
	t.Parallel()
	dist := release(t)

	t.Run("checksums", func(t *testing.T) {
		files := []string{releaseBase, releaseBase + ".cdx.json", releaseBase + ".tar.gz"}
		if runtime.GOOS == "linux" {
			files = append([]string{releaseImage}, files...)
		}
		var lines []string
		for _, file := range files {
			lines = append(lines, harness.SHA256(harness.ReadFile(t, filepath.Join(dist, file)))+"  "+file+"\n")
		}
		if sums := string(harness.ReadFile(t, filepath.Join(dist, "SHA256SUMS"))); sums != strings.Join(lines, "") {
			t.Errorf("SHA256SUMS is\n%swant\n%s", sums, strings.Join(lines, ""))
		}
		if sum := harness.SHA256(harness.ReadFile(t, filepath.Join(dist, releaseBase))); sum != harness.PluginSHA {
			t.Errorf("make build makes another binary: %s, the release has %s", harness.PluginSHA, sum)
		}
	})
	t.Run("archive", func(t *testing.T) {
		dir := t.TempDir()
		untar(t, filepath.Join(dist, releaseBase+".tar.gz"), dir)
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		want := []string{"CHANGELOG.md", "LICENSE", "README.md", "install.sh", harness.PluginName}
		if !slices.Equal(names, want) {
			t.Errorf("it holds %v, want %v", names, want)
		}
		if harness.SHA256(harness.ReadFile(t, filepath.Join(dir, harness.PluginName))) != harness.PluginSHA {
			t.Error("its binary is not the bare one")
		}
	})
	t.Run("static and stripped", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			return // only Linux has ELF files
		}
		binary, err := elf.Open(filepath.Join(dist, releaseBase))
		if err != nil {
			t.Fatal(err)
		}
		defer binary.Close()
		for _, segment := range binary.Progs {
			if segment.Type == elf.PT_INTERP || segment.Type == elf.PT_DYNAMIC {
				t.Errorf("it has a segment %v: it needs libraries", segment.Type)
			}
		}
		if binary.Section(".symtab") != nil || binary.Section(".debug_info") != nil {
			t.Error("it is not stripped")
		}
	})
	t.Run("bill of materials", func(t *testing.T) {
		var bom struct {
			BOMFormat    string
			SerialNumber string
			Metadata     struct {
				Timestamp  string
				Tools      []map[string]any
				Component  struct{ Name, Version string }
				Properties []struct{ Name, Value string }
			}
			Components []struct {
				Name, Version string
				Hashes        []map[string]any
			}
		}
		if err := json.Unmarshal(harness.ReadFile(t, filepath.Join(dist, releaseBase+".cdx.json")), &bom); err != nil {
			t.Fatal(err)
		}
		of := bom.Metadata.Component
		if bom.BOMFormat != "CycloneDX" || of.Name != harness.PluginName || of.Version != harness.PluginVersion {
			t.Errorf("it is a %s of %+v", bom.BOMFormat, of)
		}
		if bom.SerialNumber != "" || bom.Metadata.Timestamp != "" ||
			len(bom.Metadata.Tools) != 1 || bom.Metadata.Tools[0]["hashes"] != nil {
			t.Errorf("nobody else can make it: %q, %q, %v", bom.SerialNumber, bom.Metadata.Timestamp, bom.Metadata.Tools)
		}
		found := map[string]string{}
		for _, c := range bom.Components {
			found[c.Name] = c.Version
			if c.Name == "github.com/hashicorp/vault/sdk" && len(c.Hashes) == 0 {
				t.Error("modules have no checksums")
			}
		}
		if !strings.HasPrefix(found["github.com/hashicorp/vault/sdk"], "v") || found["std"] != runtime.Version() {
			t.Errorf("it holds %v", found)
		}
		sum := ""
		for _, property := range bom.Metadata.Properties {
			if property.Name == "cdx:gomod:binary:hash:SHA-256" {
				sum = property.Value
			}
		}
		if sum != harness.PluginSHA {
			t.Errorf("it is of the binary %q, want %s", sum, harness.PluginSHA)
		}
	})
}

// TestReleaseVersion finds the version of the source in the binary, and shows that
// Vault registers it under no other version.
func TestReleaseVersion(t *testing.T) {
	t.Parallel()
	if harness.PluginVersion != sourceVersion() {
		t.Errorf("-version prints %s, want %s", harness.PluginVersion, sourceVersion())
	}
	err := harness.SharedVault(t).Register(harness.PluginName, harness.PluginSHA, "v9.9.9")
	if err == nil || !strings.Contains(err.Error(), "reported version ("+sourceVersion()+")") {
		t.Errorf("registered as v9.9.9: %v", err)
	}
}

// TestReleaseRefuses builds a release in clones with a wrong tag or with changes.
func TestReleaseRefuses(t *testing.T) {
	t.Parallel()
	script := harness.ReadFile(t, "../../scripts/release.sh")
	for name, test := range map[string]struct{ tag, want string }{
		"another version": {"v9.9.9", "the tag of this commit is v9.9.9, the version in client.go is " + sourceVersion()},
		"changed files":   {sourceVersion(), "has changes of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clone := filepath.Join(t.TempDir(), "clone")
			for _, args := range []string{"clone -q --no-tags ../.. " + clone, "-C " + clone + " tag --no-sign " + test.tag} {
				if out, err := exec.CommandContext(t.Context(), "git", strings.Fields(args)...).CombinedOutput(); err != nil {
					t.Fatalf("git %s: %v\n%s", args, err, out)
				}
			}
			// The script as it is here, with a change.
			harness.WriteFile(t, filepath.Join(clone, "scripts/release.sh"), append(script, '\n'), 0o755)
			cmd := exec.CommandContext(t.Context(), filepath.Join(clone, "scripts/release.sh"))
			cmd.Env = append(os.Environ(), "PLATFORMS=none/none") // a build that starts anyway soon ends
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), test.want) {
				t.Errorf("it ends with %v and says\n%s", err, out)
			}
			if _, err := os.Stat(filepath.Join(clone, "dist")); err == nil {
				t.Error("it built something")
			}
		})
	}
}
