//go:build acceptance

package acceptance

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
	"syscall"
	"testing"

	"github.com/hashicorp/vault/api"
)

// unpack puts the files of a release archive into a directory.
func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	content, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
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
		if err := os.WriteFile(filepath.Join(dir, header.Name), content, os.FileMode(header.Mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// startBare runs a server with nothing registered and, at first, without a
// plugin directory. It returns one for it.
func startBare(t *testing.T) (s *server, pluginDir string) {
	t.Helper()
	s = startVault(t)
	err := s.root().Sys().DeregisterPlugin(&api.DeregisterPluginInput{Name: pluginName, Type: api.PluginTypeSecrets, Version: suite.pluginVersion})
	if err != nil {
		t.Fatal(err)
	}
	pluginDir, err = filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.setPluginDir(t, suite.pluginDir, "")
	return s, pluginDir
}

// setPluginDir restarts the server with another plugin directory.
func (s *server) setPluginDir(t *testing.T, old, dir string) {
	t.Helper()
	config, err := os.ReadFile(s.path("vault.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	line := func(dir string) []byte { return []byte(`plugin_directory = "` + dir + `"`) }
	changed := bytes.Replace(config, line(old), line(dir), 1)
	if bytes.Equal(changed, config) {
		t.Fatalf("no plugin_directory %q in the configuration", old)
	}
	if err := os.WriteFile(s.path("vault.hcl"), changed, 0o600); err != nil {
		t.Fatal(err)
	}
	s.restart(t, syscall.SIGTERM)
}

// bareTools is a PATH that holds vault, bash and what any system has.
func bareTools(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(suite.vaultBin, filepath.Join(dir, "vault")); err != nil {
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
	*server
	script, tools string
}

// run returns what the script prints and whether it succeeds.
func (i installer) run(t *testing.T, token string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(i.tools, "bash"), append([]string{i.script}, args...)...)
	cmd.Env = []string{"HOME=" + i.dir, "PATH=" + i.tools, "VAULT_ADDR=" + i.addr, "VAULT_TOKEN=" + token, "VAULT_CLI_NO_COLOR=1"}
	out, err := cmd.CombinedOutput()
	i.witness.see("output of install.sh", out, false)
	t.Logf("install.sh %s\n%s", strings.Join(args, " "), out)
	return string(out), err == nil
}

// does expects success, and what the script says.
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

// refuses expects an error that says why, and no trace of the attempt.
func (i installer) refuses(t *testing.T, token, pluginDir string, args []string, want string) {
	t.Helper()
	before := i.traces(t, pluginDir)
	out, ok := i.run(t, token, args...)
	if ok {
		t.Error("it succeeds")
	}
	if !strings.Contains(out, want) {
		t.Errorf("it does not say %q", want)
	}
	if now := i.traces(t, pluginDir); now != before {
		t.Errorf("it left\n%s\nthere was\n%s", now, before)
	}
}

// traces is all that an installation changes, as text.
func (s *server) traces(t *testing.T, pluginDir string) string {
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
	catalog, err := s.call(t.Context(), s.keys.root, http.MethodGet, "sys/plugins/catalog", nil)
	if err != nil {
		t.Fatal(err)
	}
	if detailed, ok := catalog.data["detailed"].([]any); ok {
		for _, one := range detailed {
			if entry, ok := one.(map[string]any); ok && entry["name"] == pluginName {
				traces = append(traces, "registered "+entry["version"].(string)+" "+entry["sha256"].(string))
			}
		}
	}
	mounts, err := s.root().Sys().ListMountsWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for path, at := range mounts {
		traces = append(traces, "mounted "+path+" "+at.PluginVersion+" "+at.RunningVersion+" "+at.RunningSha256)
	}
	slices.Sort(traces)
	return strings.Join(traces, "\n")
}

// documentedPolicy is the policy that docs/install.md gives to who installs.
func documentedPolicy(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(page), "vault policy write autopay-install - <<'POLICY'\n")
	policy, _, ends := strings.Cut(rest, "\nPOLICY\n")
	if !found || !ends {
		t.Fatal("docs/install.md has no policy autopay-install")
	}
	return policy
}

// TestInstall takes a release archive through install.sh into a real server,
// with no other rights than the documented ones.
func TestInstall(t *testing.T) {
	t.Parallel()
	dist := release(t)
	home := t.TempDir()
	unpack(t, filepath.Join(dist, releaseBase+".tar.gz"), home)
	s, dir := startBare(t)
	i := installer{s, filepath.Join(home, "install.sh"), bareTools(t)}
	token := s.tokenFor(t, documentedPolicy(t))
	sums := []string{"--sums", filepath.Join(dist, "SHA256SUMS")}
	version := suite.pluginVersion
	target := filepath.Join(dir, pluginName+"-"+version)

	i.refuses(t, token, dir, sums, "no plugin_directory")
	s.setPluginDir(t, "", dir)

	t.Run("refused", func(t *testing.T) {
		tampered := filepath.Join(t.TempDir(), pluginName)
		content, err := os.ReadFile(filepath.Join(home, pluginName))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(tampered, append(content, 0), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, []byte("another build"), 0o755); err != nil {
			t.Fatal(err)
		}
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
			"another checksum":  {token, []string{"--sha256", suite.pluginSHA[1:] + "0"}, "has the checksum"},
			"no checksums":      {token, nil, "--sums"},
			"no binary":         {token, append([]string{"--binary", dir + "/none"}, sums...), "there is no"},
			"no rights":         {s.tokenFor(t, `path "sys/mounts" { capabilities = ["read"] }`), sums, "refuses this token"},
			"another engine":    {s.keys.root, append([]string{"--mount", "cubbyhole"}, sums...), "another secrets engine, cubbyhole"},
			"another directory": {token, append([]string{"--plugin-dir", dir + "/none"}, sums...), "there is no directory"},
			"unknown option":    {token, []string{"--force"}, "usage:"},
			"copy-only alone":   {token, append([]string{"--copy-only"}, sums...), "needs --plugin-dir"},
		} {
			t.Run(name, func(t *testing.T) { i.refuses(t, test.token, dir, test.args, test.want) })
		}
		t.Run("sealed", func(t *testing.T) {
			s.seal(t)
			out, ok := i.run(t, token, sums...)
			s.mustUnseal(t)
			if ok || !strings.Contains(out, "sealed") {
				t.Error("it does not say that Vault is sealed")
			}
		})
	})

	t.Run("dry run", func(t *testing.T) {
		before := s.traces(t, dir)
		i.does(t, token, append([]string{"--dry-run"}, sums...), "would copy it to "+target, "would register it", "would enable it at autopay/", "nothing was changed")
		if now := s.traces(t, dir); now != before {
			t.Errorf("it left\n%s\nthere was\n%s", now, before)
		}
	})
	if t.Failed() {
		return
	}

	i.does(t, token, sums, "register it", "enable it", "autopay/ runs "+version)
	m := mount{s, "autopay"}
	p := startProvider(t)
	cred := p.newCredential()
	m.mustWrite(t, "config", cred.config())
	old := m.token(t, "")
	if !p.accepts(t, old.AccessToken) {
		t.Error("the token is not good")
	}
	want := func(t *testing.T, version string) {
		t.Helper()
		if now := m.token(t, ""); now.AccessToken != old.AccessToken {
			t.Error("another token is served")
		}
		p.asked(t, cred, 1)
		if now := m.read(t, "status").data["plugin_version"]; now != version {
			t.Errorf("status: plugin_version %v, want %s", now, version)
		}
	}
	want(t, version)

	t.Run("again", func(t *testing.T) {
		before, pids := s.traces(t, dir), s.pluginPIDs(t)
		i.does(t, token, sums, "nothing to do")
		if now := s.traces(t, dir); now != before {
			t.Errorf("it left\n%s\nthere was\n%s", now, before)
		}
		if now := s.pluginPIDs(t); !slices.Equal(now, pids) {
			t.Errorf("it restarted the plugin: %v, was %v", now, pids)
		}
	})

	binary := filepath.Join(t.TempDir(), pluginName)
	sha := buildVersion(t, binary, nextVersion)
	upgrade := []string{"--binary", binary, "--sha256", strings.ToUpper(sha)}
	t.Run("upgrade, dry", func(t *testing.T) {
		before := s.traces(t, dir)
		i.does(t, token, append(upgrade, "--dry-run"), "would set the version of autopay/, which was "+version, "would reload it, which ran "+version)
		if now := s.traces(t, dir); now != before {
			t.Errorf("it left\n%s\nthere was\n%s", now, before)
		}
	})
	t.Run("upgrade", func(t *testing.T) {
		i.does(t, token, upgrade, "register it", "reload it", "autopay/ runs "+nextVersion)
		want(t, nextVersion)
		i.does(t, token, upgrade, "nothing to do")
	})
	t.Run("and back", func(t *testing.T) {
		i.does(t, token, sums, "set the version", "reload it", "autopay/ runs "+version)
		want(t, version)
	})
	t.Run("set, not yet reloaded", func(t *testing.T) {
		_, err := s.root().Logical().WriteWithContext(t.Context(), "sys/mounts/autopay/tune", map[string]any{"plugin_version": nextVersion})
		if err != nil {
			t.Fatal(err)
		}
		i.does(t, token, upgrade, "reload it", "autopay/ runs "+nextVersion)
		want(t, nextVersion)
	})
	t.Run("another build of a registered version", func(t *testing.T) {
		if err := os.Rename(target, target+".gone"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(binary, append(mustRead(t, filepath.Join(home, pluginName)), 0), 0o755); err != nil {
			t.Fatal(err)
		}
		i.refuses(t, token, dir, []string{"--binary", binary, "--sha256", shaOf(mustRead(t, binary))}, "registered with another checksum")
	})
	t.Run("copy only", func(t *testing.T) {
		other := t.TempDir()
		out, ok := installer{&server{dir: s.dir, addr: "http://127.0.0.1:1", witness: s.witness}, i.script, i.tools}.run(t, "",
			append([]string{"--copy-only", "--plugin-dir", other}, sums...)...)
		if !ok || !strings.Contains(out, "copy it to ") {
			t.Error("it does not copy")
		}
		if shaOf(mustRead(t, filepath.Join(other, pluginName+"-"+version))) != suite.pluginSHA {
			t.Error("the copy is another file")
		}
	})
}
