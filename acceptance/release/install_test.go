//go:build acceptance

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// unpack puts the files of a release archive into a directory.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	content := harness.ReadFile(t, archive)
	zr, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(zr); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		harness.WriteFile(t, filepath.Join(dir, header.Name), content, os.FileMode(header.Mode))
	}
}

// startBare runs a server that has no plugin registered and no plugin directory. It
// returns a directory that can become the plugin directory.
func startBare(t *testing.T) (s *harness.Server, pluginDir string) {
	t.Helper()
	s = harness.StartVault(t)
	err := s.Root().Sys().DeregisterPlugin(&api.DeregisterPluginInput{Name: harness.PluginName, Type: api.PluginTypeSecrets, Version: harness.PluginVersion})
	if err != nil {
		t.Fatal(err)
	}
	pluginDir, err = filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	setPluginDir(t, s, harness.PluginDir, "")
	return s, pluginDir
}

// setPluginDir restarts the server with another plugin directory.
func setPluginDir(t *testing.T, s *harness.Server, old, dir string) {
	t.Helper()
	line := func(dir string) string { return `plugin_directory = "` + dir + `"` }
	s.Reconfigure(t, func(config string) string { return strings.Replace(config, line(old), line(dir), 1) })
}

// bareTools returns a PATH with vault, bash and what every system has.
func bareTools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(harness.VaultBin, filepath.Join(dir, "vault")); err != nil {
		t.Fatal(err)
	}
	sum := "sha256sum"
	if _, err := exec.LookPath(sum); err != nil {
		sum = "shasum"
	}
	for _, tool := range []string{"bash", sum, "cat", "chmod", "cp", "cut", "dirname", "grep", "id", "mktemp", "mv", "rm", "tr"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// installer is the script of an unpacked release, with a server to install into.
type installer struct {
	*harness.Server
	script, tools string
	env           []string
}

// run returns what the script prints and whether it succeeds.
func (i installer) run(t *testing.T, token string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(i.tools, "bash"), append([]string{i.script}, args...)...)
	cmd.Env = i.Env(token, append(i.env, "PATH="+i.tools)...)
	out, err := cmd.CombinedOutput()
	i.Saw("output of install.sh", out)
	t.Logf("install.sh %s\n%s", strings.Join(args, " "), out)
	return string(out), err == nil
}

// does fails the test unless the script succeeds and prints all of the given texts.
func (i installer) does(t *testing.T, token string, args []string, want ...string) {
	t.Helper()
	out, ok := i.run(t, token, args...)
	if !ok {
		t.Fatal("it fails")
	}
	for _, text := range want {
		if !strings.Contains(out, text) {
			t.Errorf("it does not say %q", text)
		}
	}
}

// refuses fails the test unless the script fails, prints the reason and leaves no
// trace.
func (i installer) refuses(t *testing.T, token, pluginDir string, args []string, want string) {
	t.Helper()
	before := traces(t, i.Server, pluginDir)
	out, ok := i.run(t, token, args...)
	if ok {
		t.Error("it succeeds")
	}
	if !strings.Contains(out, want) {
		t.Errorf("it does not say %q", want)
	}
	if now := traces(t, i.Server, pluginDir); now != before {
		t.Errorf("it left\n%s\nthere was\n%s", now, before)
	}
}

// traces returns everything that an installation can change, as text.
func traces(t *testing.T, s *harness.Server, pluginDir string) string {
	t.Helper()
	entries, err := os.ReadDir(pluginDir)
	if err != nil {
		t.Fatal(err)
	}
	var traces []string
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		traces = append(traces, entry.Name()+" "+info.Mode().String()+" "+info.ModTime().String())
	}
	catalog, err := s.Call(t.Context(), s.RootToken, http.MethodGet, "sys/plugins/catalog", nil)
	if err != nil {
		t.Fatal(err)
	}
	if detailed, ok := catalog.Data["detailed"].([]any); ok {
		for _, one := range detailed {
			if entry, ok := one.(map[string]any); ok && entry["name"] == harness.PluginName {
				traces = append(traces, "registered "+entry["version"].(string)+" "+entry["sha256"].(string))
			}
		}
	}
	mounts, err := s.Root().Sys().ListMountsWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for path, at := range mounts {
		traces = append(traces, "mounted "+path+" "+at.PluginVersion+" "+at.RunningVersion+" "+at.RunningSha256)
	}
	slices.Sort(traces)
	return strings.Join(traces, "\n")
}

// documentedPolicy returns the policy of docs/install.md for those who install.
func documentedPolicy(t *testing.T) string {
	t.Helper()
	page := harness.ReadFile(t, "../../docs/install.md")
	_, rest, found := strings.Cut(string(page), "vault policy write autopay-install - <<'POLICY'\n")
	policy, _, ends := strings.Cut(rest, "\nPOLICY\n")
	if !found || !ends {
		t.Fatal("docs/install.md has no policy autopay-install")
	}
	return policy
}

// TestInstall installs a release archive in a real server with install.sh, using
// the documented policy only.
func TestInstall(t *testing.T) {
	t.Parallel()
	dist := release(t)
	home := t.TempDir()
	unpack(t, filepath.Join(dist, releaseBase+".tar.gz"), home)
	s, dir := startBare(t)
	i := installer{s, filepath.Join(home, "install.sh"), bareTools(t), nil}
	token := s.TokenFor(t, documentedPolicy(t))
	sums := []string{"--sums", filepath.Join(dist, "SHA256SUMS")}
	version := harness.PluginVersion
	target := filepath.Join(dir, harness.PluginName+"-"+version)

	i.refuses(t, token, dir, sums, "no plugin_directory")
	setPluginDir(t, s, "", dir)

	t.Run("refused", func(t *testing.T) {
		tampered := filepath.Join(t.TempDir(), harness.PluginName)
		content := harness.ReadFile(t, filepath.Join(home, harness.PluginName))
		harness.WriteFile(t, tampered, append(content, 0), 0o755)
		harness.WriteFile(t, target, []byte("another build"), 0o755)
		i.refuses(t, token, dir, sums, "with another checksum")
		if err := os.Remove(target); err != nil {
			t.Fatal(err)
		}
		for name, test := range map[string]struct {
			token string
			args  []string
			want  string
		}{
			"tampered binary":   {token, append([]string{"--binary", tampered}, sums...), "is not in"},
			"another checksum":  {token, []string{"--sha256", harness.PluginSHA[1:] + "0"}, "has the checksum"},
			"no checksums":      {token, nil, "--sums"},
			"no binary":         {token, append([]string{"--binary", dir + "/none"}, sums...), "there is no"},
			"no rights":         {s.TokenFor(t, `path "sys/mounts" { capabilities = ["read"] }`), sums, "refuses this token"},
			"another engine":    {s.RootToken, append([]string{"--mount", "cubbyhole"}, sums...), "another secrets engine, cubbyhole"},
			"another directory": {token, append([]string{"--plugin-dir", dir + "/none"}, sums...), "there is no directory"},
			"unknown option":    {token, []string{"--force"}, "usage:"},
			"copy-only alone":   {token, append([]string{"--copy-only"}, sums...), "needs --plugin-dir"},
		} {
			t.Run(name, func(t *testing.T) { i.refuses(t, test.token, dir, test.args, test.want) })
		}
		t.Run("sealed", func(t *testing.T) {
			s.Seal(t)
			out, ok := i.run(t, token, sums...)
			s.Unseal(t)
			if ok || !strings.Contains(out, "sealed") {
				t.Error("it does not say that Vault is sealed")
			}
		})
	})

	t.Run("dry run", func(t *testing.T) {
		before := traces(t, s, dir)
		i.does(t, token, append([]string{"--dry-run"}, sums...), "would copy it to "+target, "would register it", "would enable it at autopay/", "nothing was changed")
		if now := traces(t, s, dir); now != before {
			t.Errorf("it left\n%s\nthere was\n%s", now, before)
		}
	})
	if t.Failed() {
		return
	}

	i.does(t, token, sums, "register it", "enable it", "autopay/ runs "+version)
	m := harness.Mount{Server: s, At: "autopay"}
	p := harness.StartAutopay(t)
	cred := p.NewCredential()
	m.MustWrite(t, "config", cred.Config())
	old := m.Token(t, "")
	if !p.Accepts(t, old.AccessToken) {
		t.Error("the token is not good")
	}
	want := func(t *testing.T, version string) {
		t.Helper()
		if now := m.Token(t, ""); now.AccessToken != old.AccessToken {
			t.Error("another token is served")
		}
		p.WantRequests(t, cred, 1)
		if now := m.Read(t, "status").Data["plugin_version"]; now != version {
			t.Errorf("status: plugin_version %v, want %s", now, version)
		}
	}
	want(t, version)

	t.Run("again", func(t *testing.T) {
		before, pids := traces(t, s, dir), s.PluginPIDs(t)
		i.does(t, token, sums, "nothing to do")
		if now := traces(t, s, dir); now != before {
			t.Errorf("it left\n%s\nthere was\n%s", now, before)
		}
		if now := s.PluginPIDs(t); !slices.Equal(now, pids) {
			t.Errorf("it restarted the plugin: %v, was %v", now, pids)
		}
	})

	binary := filepath.Join(t.TempDir(), harness.PluginName)
	sha := harness.BuildVersion(t, binary, harness.NextVersion)
	upgrade := []string{"--binary", binary, "--sha256", strings.ToUpper(sha)}
	t.Run("upgrade, dry", func(t *testing.T) {
		before := traces(t, s, dir)
		i.does(t, token, append(upgrade, "--dry-run"), "would set the version of autopay/, which was "+version, "would reload it, which ran "+version)
		if now := traces(t, s, dir); now != before {
			t.Errorf("it left\n%s\nthere was\n%s", now, before)
		}
	})
	t.Run("upgrade", func(t *testing.T) {
		i.does(t, token, upgrade, "register it", "reload it", "autopay/ runs "+harness.NextVersion)
		want(t, harness.NextVersion)
		i.does(t, token, upgrade, "nothing to do")
	})
	t.Run("and back", func(t *testing.T) {
		i.does(t, token, sums, "set the version", "reload it", "autopay/ runs "+version)
		want(t, version)
	})
	t.Run("set, not yet reloaded", func(t *testing.T) {
		_, err := s.Root().Logical().WriteWithContext(t.Context(), "sys/mounts/autopay/tune", map[string]any{"plugin_version": harness.NextVersion})
		if err != nil {
			t.Fatal(err)
		}
		i.does(t, token, upgrade, "reload it", "autopay/ runs "+harness.NextVersion)
		want(t, harness.NextVersion)
	})
	t.Run("another build of a registered version", func(t *testing.T) {
		if err := os.Rename(target, target+".gone"); err != nil {
			t.Fatal(err)
		}
		harness.WriteFile(t, binary, append(harness.ReadFile(t, filepath.Join(home, harness.PluginName)), 0), 0o755)
		i.refuses(t, token, dir, []string{"--binary", binary, "--sha256", harness.SHA256(harness.ReadFile(t, binary))}, "registered with another checksum")
	})
	t.Run("copy only", func(t *testing.T) {
		other := t.TempDir()
		alone := installer{s, i.script, i.tools, []string{"VAULT_ADDR=http://127.0.0.1:1"}}
		out, ok := alone.run(t, "", append([]string{"--copy-only", "--plugin-dir", other}, sums...)...)
		if !ok || !strings.Contains(out, "copy it to ") {
			t.Error("it does not copy")
		}
		if harness.SHA256(harness.ReadFile(t, filepath.Join(other, harness.PluginName+"-"+version))) != harness.PluginSHA {
			t.Error("the copy is another file")
		}
	})
}
