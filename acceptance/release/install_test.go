//go:build acceptance

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// bareTools returns a PATH with Vault's command under the name cli, bash and what
// every system has.
func bareTools(t *testing.T, cli string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(harness.VaultBin, filepath.Join(dir, cli)); err != nil {
		t.Fatal(err)
	}
	sum := "sha256sum"
	if _, err := exec.LookPath(sum); err != nil {
		sum = "shasum"
	}
	for _, tool := range []string{"bash", sum, "cat", "chmod", "cp", "cut", "dirname", "grep", "id", "mktemp", "mv", "ps", "rm", "tr"} {
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
	pin, err := s.Call(t.Context(), s.RootToken, http.MethodGet, pinPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	traces = append(traces, fmt.Sprint("pinned ", pin.Data["version"]))
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

// pinPath is where Vault keeps the version that all mounts of the plugin run.
const pinPath = "sys/plugins/pins/secret/" + harness.PluginName

// startInstaller runs a server with nothing registered, and unpacks a release
// archive beside it. It returns the server's plugin directory and a token with
// no other rights than the documented ones.
func startInstaller(t *testing.T) (i installer, pluginDir, token string) {
	t.Helper()
	home := t.TempDir()
	unpack(t, filepath.Join(release(t), releaseBase+".tar.gz"), home)
	s, pluginDir := startBare(t)
	return installer{s, filepath.Join(home, "install.sh"), bareTools(t, "vault"), nil}, pluginDir, s.TokenFor(t, documentedPolicy(t))
}

// sums returns the option that names the checksums of the release.
func sums(t *testing.T) []string {
	t.Helper()
	return []string{"--sums", filepath.Join(release(t), "SHA256SUMS")}
}

// TestInstallRefuses shows what install.sh does not do, and that it leaves no
// trace then.
func TestInstallRefuses(t *testing.T) {
	t.Parallel()
	i, dir, token := startInstaller(t)
	sums := sums(t)
	binary := filepath.Join(filepath.Dir(i.script), harness.PluginName)
	target := filepath.Join(dir, harness.PluginName+"-"+harness.PluginVersion)

	i.refuses(t, token, dir, sums, "no plugin_directory")
	setPluginDir(t, i.Server, "", dir)

	tampered := filepath.Join(t.TempDir(), harness.PluginName)
	harness.WriteFile(t, tampered, append(harness.ReadFile(t, binary), 0), 0o755)
	for name, test := range map[string]struct {
		token string
		args  []string
		want  string
	}{
		"tampered binary":   {token, append([]string{"--binary", tampered}, sums...), "is not in"},
		"another checksum":  {token, []string{"--sha256", harness.PluginSHA[1:] + "0"}, "has the checksum"},
		"no checksums":      {token, nil, "--sums"},
		"no binary":         {token, append([]string{"--binary", dir + "/none"}, sums...), "there is no"},
		"no rights":         {i.TokenFor(t, `path "sys/mounts" { capabilities = ["read"] }`), sums, "refuses this token"},
		"another engine":    {i.RootToken, append([]string{"--mount", "cubbyhole"}, sums...), "another secrets engine at cubbyhole/"},
		"another directory": {token, append([]string{"--plugin-dir", dir + "/none"}, sums...), "there is no directory"},
		"unknown option":    {token, []string{"--force"}, "usage:"},
		"copy-only alone":   {token, append([]string{"--copy-only"}, sums...), "needs --plugin-dir"},
	} {
		t.Run(name, func(t *testing.T) { i.refuses(t, test.token, dir, test.args, test.want) })
	}
	t.Run("sealed", func(t *testing.T) {
		i.Seal(t)
		out, ok := i.run(t, token, sums...)
		i.Unseal(t)
		if ok || !strings.Contains(out, "sealed") {
			t.Error("it does not say that the server is sealed")
		}
	})
	t.Run("another build in the directory", func(t *testing.T) {
		harness.WriteFile(t, target, []byte("another build"), 0o755)
		i.refuses(t, token, dir, sums, "exists with another checksum")
		if err := os.Remove(target); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("another build registered", func(t *testing.T) {
		harness.WriteFile(t, target, harness.ReadFile(t, binary), 0o755)
		if err := i.Register(filepath.Base(target), harness.PluginSHA, harness.PluginVersion); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(target); err != nil {
			t.Fatal(err)
		}
		i.refuses(t, token, dir, []string{"--binary", tampered, "--sha256", harness.SHA256(harness.ReadFile(t, tampered))}, "registered with another checksum")
	})
}

// TestInstallElsewhere covers the nodes of a cluster that are not active, and a
// development server of OpenBao.
func TestInstallElsewhere(t *testing.T) {
	t.Parallel()
	i, _, token := startInstaller(t)
	t.Run("copy only", func(t *testing.T) {
		dir := t.TempDir()
		i.env = []string{"VAULT_ADDR=http://127.0.0.1:1"}
		i.does(t, token, append([]string{"--copy-only", "--plugin-dir", dir}, sums(t)...), "copy it to "+dir)
		if harness.SHA256(harness.ReadFile(t, filepath.Join(dir, harness.PluginName+"-"+harness.PluginVersion))) != harness.PluginSHA {
			t.Error("the copy is another file")
		}
	})
	t.Run("bao, dev server", func(t *testing.T) {
		dir, addr := startDev(t, i.Server)
		i.env, i.tools = []string{"VAULT_ADDR=" + addr}, bareTools(t, "bao")
		i.does(t, "root", sums(t), "copy it to "+dir, "autopay/ runs "+harness.PluginVersion, "next: bao write autopay/config")
	})
}

// startDev runs a development server whose root token is root. It returns its
// plugin directory and its address.
func startDev(t *testing.T, s *harness.Server) (pluginDir, addr string) {
	t.Helper()
	pluginDir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := l.Addr().String()
	l.Close()

	cmd := exec.CommandContext(t.Context(), harness.VaultBin, "server", "-dev", "-dev-no-store-token",
		"-dev-root-token-id=root", "-dev-listen-address="+listen, "-dev-plugin-dir="+pluginDir)
	cmd.Env = s.Env("", "TMPDIR="+harness.Dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	harness.DieWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the context has ended it
	client := s.Client("")
	if err := client.SetAddress("http://" + listen); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.StartWithin, "the development server does not answer", func() bool {
		health, err := client.Sys().Health()
		return err == nil && !health.Sealed
	})
	return pluginDir, "http://" + listen
}

// TestInstall runs install.sh out of a release archive against real servers,
// one with a pinned version and one without, and compares all that it prints.
func TestInstall(t *testing.T) {
	t.Parallel()
	const next = harness.NextVersion
	version := harness.PluginVersion
	newBinary := filepath.Join(t.TempDir(), harness.PluginName)
	newSHA := harness.CopyNextVersion(t, newBinary)
	this, upgrade := sums(t), []string{"--binary", newBinary, "--sha256", strings.ToUpper(newSHA)}
	with := func(args []string, more ...string) []string { return append(slices.Clone(args), more...) }

	const none = ""
	type printed struct{ notPinned, pinned string }
	same := func(text string) printed { return printed{text, text} }
	//nolint:dupword // one line of output ends with the path that the next one begins with
	runs := []struct {
		name    string
		args    []string
		byHand  string // a step of the upgrade that was done before
		prints  printed
		version string // what runs afterwards
		changed bool
	}{
		{"first install, dry run", with(this, "--dry-run"), none, printed{
			`would copy it to DIR/PLUGIN-v0.1.0: copy HOME/PLUGIN DIR/PLUGIN-v0.1.0
would register it: vault plugin register -sha256=SUM -version=v0.1.0 -command=PLUGIN-v0.1.0 secret PLUGIN
would enable it at autopay/: vault secrets enable -path=autopay -plugin-version=v0.1.0 PLUGIN
nothing was changed (--dry-run)`,
			`would copy it to DIR/PLUGIN-v0.1.0: copy HOME/PLUGIN DIR/PLUGIN-v0.1.0
would register it: vault plugin register -sha256=SUM -version=v0.1.0 -command=PLUGIN-v0.1.0 secret PLUGIN
would pin v0.1.0: vault write sys/plugins/pins/secret/PLUGIN version=v0.1.0
would enable it at autopay/: vault secrets enable -path=autopay PLUGIN
would reload it: vault plugin reload -plugin=PLUGIN -scope=global
nothing was changed (--dry-run)`,
		}, none, false},
		{"first install", this, none, printed{
			`copy it to DIR/PLUGIN-v0.1.0
register it
enable it at autopay/
autopay/ runs v0.1.0
next: vault write autopay/config client_id=… client_secret=-`,
			`copy it to DIR/PLUGIN-v0.1.0
register it
pin v0.1.0
enable it at autopay/
reload it
autopay/ runs v0.1.0
next: vault write autopay/config client_id=… client_secret=-`,
		}, version, true},
		{"again", this, none, same("nothing to do\nautopay/ runs v0.1.0"), version, false},
		{"upgrade, dry run", with(upgrade, "--dry-run"), none, printed{
			`would copy it to DIR/PLUGIN-v0.1.1: copy NEW/PLUGIN DIR/PLUGIN-v0.1.1
would register it: vault plugin register -sha256=SUM -version=v0.1.1 -command=PLUGIN-v0.1.1 secret PLUGIN
would set autopay/ to v0.1.1 instead of v0.1.0: vault secrets tune -plugin-version=v0.1.1 autopay
would reload it: vault plugin reload -plugin=PLUGIN -scope=global
nothing was changed (--dry-run)`,
			`would copy it to DIR/PLUGIN-v0.1.1: copy NEW/PLUGIN DIR/PLUGIN-v0.1.1
would register it: vault plugin register -sha256=SUM -version=v0.1.1 -command=PLUGIN-v0.1.1 secret PLUGIN
would pin v0.1.1 instead of v0.1.0: vault write sys/plugins/pins/secret/PLUGIN version=v0.1.1
would reload it: vault plugin reload -plugin=PLUGIN -scope=global
nothing was changed (--dry-run)`,
		}, version, false},
		{"upgrade", upgrade, none, printed{
			`copy it to DIR/PLUGIN-v0.1.1
register it
set autopay/ to v0.1.1 instead of v0.1.0
reload it
autopay/ runs v0.1.1`,
			`copy it to DIR/PLUGIN-v0.1.1
register it
pin v0.1.1 instead of v0.1.0
reload it
autopay/ runs v0.1.1`,
		}, next, true},
		{"upgrade again", upgrade, none, same("nothing to do\nautopay/ runs v0.1.1"), next, false},
		{"downgrade, refused", this, none, same("v0.1.0 is older than v0.1.1, the current version: use --downgrade to go back"), next, false},
		{"downgrade, dry run", with(this, "--downgrade", "--dry-run"), none, printed{
			`would set autopay/ to v0.1.0 instead of v0.1.1: vault secrets tune -plugin-version=v0.1.0 autopay
would reload it: vault plugin reload -plugin=PLUGIN -scope=global
nothing was changed (--dry-run)`,
			`would pin v0.1.0 instead of v0.1.1: vault write sys/plugins/pins/secret/PLUGIN version=v0.1.0
would reload it: vault plugin reload -plugin=PLUGIN -scope=global
nothing was changed (--dry-run)`,
		}, next, false},
		{"downgrade on request", with(this, "--downgrade"), none, printed{
			"set autopay/ to v0.1.0 instead of v0.1.1\nreload it\nautopay/ runs v0.1.0",
			"pin v0.1.0 instead of v0.1.1\nreload it\nautopay/ runs v0.1.0",
		}, version, true},
		{"upgrade, half done by hand", upgrade, next, same("reload it\nautopay/ runs v0.1.1"), next, true},
	}

	for _, pinned := range []bool{false, true} {
		t.Run(map[bool]string{false: "not pinned", true: "pinned"}[pinned], func(t *testing.T) {
			t.Parallel()
			i, dir, token := startInstaller(t)
			setPluginDir(t, i.Server, "", dir)
			spell := strings.NewReplacer(dir, "DIR", filepath.Dir(i.script), "HOME", filepath.Dir(newBinary), "NEW",
				harness.PluginName, "PLUGIN", harness.PluginSHA, "SUM", newSHA, "SUM", "install: ", "")
			m := harness.Mount{Server: i.Server, At: "autopay"}
			p := harness.StartAutopay(t)
			cred := p.NewCredential()
			var bearer string

			for _, run := range runs {
				t.Run(run.name, func(t *testing.T) {
					args, want := run.args, run.prints.notPinned
					if pinned {
						want = run.prints.pinned
					}
					if pinned && strings.HasPrefix(run.name, "first") {
						args = with(args, "--pin") // later runs follow the pin that is there
					}
					if run.byHand != "" {
						path, field := "sys/mounts/autopay/tune", "plugin_version"
						if pinned {
							path, field = pinPath, "version"
						}
						if _, err := i.Root().Logical().WriteWithContext(t.Context(), path, map[string]any{field: run.byHand}); err != nil {
							t.Fatal(err)
						}
					}

					before, pids := traces(t, i.Server, dir), i.PluginPIDs(t)
					out, _ := i.run(t, token, args...)
					_, out, _ = strings.Cut(strings.TrimSpace(out), "\n") // the first line is the checksum
					if got := spell.Replace(out); got != want {
						t.Fatalf("it prints\n%s\nwant\n%s", got, want)
					}
					changed := traces(t, i.Server, dir) != before || !slices.Equal(i.PluginPIDs(t), pids)
					if changed != run.changed {
						t.Errorf("something changed: %v, want %v", changed, run.changed)
					}
					if run.version == none {
						return
					}
					if bearer == "" {
						m.MustWrite(t, "config", cred.Config())
						bearer = m.Token(t, "").AccessToken
					}
					if m.Token(t, "").AccessToken != bearer {
						t.Error("another token is served")
					}
					p.WantRequests(t, cred, 1)
					if got := m.Read(t, "status").Data["plugin_version"]; got != run.version {
						t.Errorf("status: plugin_version %v, want %s", got, run.version)
					}
				})
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestInstallByHand runs the commands of docs/install.md as they stand there, but
// for sudo and the plugin directory.
func TestInstallByHand(t *testing.T) {
	t.Parallel()
	i, dir, _ := startInstaller(t)
	setPluginDir(t, i.Server, "", dir)
	page := string(harness.ReadFile(t, "../../docs/install.md"))
	section := func(title string) string {
		_, text, found := strings.Cut(page, "\n## "+title+"\n")
		if !found {
			t.Fatalf("docs/install.md has no section %q", title)
		}
		text, _, _ = strings.Cut(text, "\n## ")
		return text
	}
	blocks := func(title string) []string {
		var blocks []string
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section(title), -1) {
			blocks = append(blocks, strings.NewReplacer("sudo ", "", "/etc/vault.d/plugins", dir).Replace(block[1]))
		}
		return blocks
	}
	bash := func(t *testing.T, dir string, commands ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", strings.Join(commands, "\n"))
		cmd.Dir = dir
		cmd.Env = i.Env(i.RootToken, "PATH="+i.tools+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, strings.Join(commands, "\n"), out)
		}
		return string(out)
	}
	m := harness.Mount{Server: i.Server, At: "autopay"}
	runs := func(t *testing.T, version string) {
		t.Helper()
		if got := m.Read(t, "status").Data["plugin_version"]; got != version {
			t.Errorf("status: plugin_version %v, want %s", got, version)
		}
	}

	install, upgrade := blocks("Install by hand"), blocks("Upgrade")
	bash(t, filepath.Dir(i.script), install...)
	m.MustWrite(t, "config", harness.StartAutopay(t).NewCredential().Config())
	runs(t, harness.PluginVersion)

	home := t.TempDir()
	harness.CopyNextVersion(t, filepath.Join(home, harness.PluginName))
	register, _, _ := strings.Cut(install[1], "vault write sys/plugins/pins")
	bash(t, home, install[0], register, upgrade[0])
	runs(t, harness.NextVersion)
	bash(t, home, upgrade[1:]...) // the old version can be deregistered
	runs(t, harness.NextVersion)

	n := 0
	for _, command := range regexp.MustCompile("`(vault [^`]+)`").FindAllStringSubmatch(section("Namespaces, wrapping, auditing and quotas"), -1) {
		switch command := command[1]; {
		case strings.Contains(command, "-namespace"): // Vault Community has none
		case strings.HasPrefix(command, "vault unwrap"):
			n++
			if bash(t, home, "WRAPPING_TOKEN=$(vault read -wrap-ttl=60s -field=wrapping_token autopay/token)",
				strings.Replace(command, "WRAPPING_TOKEN", "$WRAPPING_TOKEN", 1)) != m.Token(t, "").AccessToken {
				t.Error("another token is unwrapped")
			}
		default:
			n++
			bash(t, home, command)
		}
	}
	if n != 4 {
		t.Errorf("%d commands found, want 4", n)
	}
}
