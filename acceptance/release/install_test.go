//go:build acceptance

package release

import (
	"fmt"
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
	for _, tool := range strings.Fields("bash cat chmod cp cut dirname grep id mktemp mv ps rm sort tr " + sum) {
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
	dir           string // the server's plugin directory
	token         string // with no other rights than the documented ones
	script, tools string
	env           []string
}

// startInstaller runs a server with nothing registered, and unpacks a release
// archive beside it.
func startInstaller(t *testing.T) installer {
	t.Helper()
	home := t.TempDir()
	untar(t, filepath.Join(release(t), releaseBase+".tar.gz"), home)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := harness.StartVault(t)
	plugin := &api.DeregisterPluginInput{
		Name: harness.PluginName, Type: api.PluginTypeSecrets, Version: harness.PluginVersion,
	}
	if err := s.Root().Sys().DeregisterPlugin(plugin); err != nil {
		t.Fatal(err)
	}
	setPluginDir(t, s, harness.PluginDir, dir)
	policy := documented(t, "vault policy write autopay-install - <<'POLICY'\n", "\nPOLICY\n")
	return installer{
		Server: s, dir: dir, token: s.TokenFor(t, policy),
		script: filepath.Join(home, "install.sh"), tools: bareTools(t, "vault"),
	}
}

// setPluginDir restarts the server with another plugin directory.
func setPluginDir(t *testing.T, s *harness.Server, old, dir string) {
	t.Helper()
	line := func(dir string) string { return `plugin_directory = "` + dir + `"` }
	s.Reconfigure(t, func(config string) string { return strings.Replace(config, line(old), line(dir), 1) })
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
	for _, text := range want {
		if !ok || !strings.Contains(out, text) {
			t.Errorf("it fails, or does not say %q", text)
		}
	}
}

// refuses fails the test unless the script fails, prints the reason and leaves no
// trace.
func (i installer) refuses(t *testing.T, token string, args []string, want string) {
	t.Helper()
	before := i.traces(t)
	if out, ok := i.run(t, token, args...); ok || !strings.Contains(out, want) {
		t.Errorf("it succeeds, or does not say %q", want)
	}
	if now := i.traces(t); now != before {
		t.Errorf("it left\n%s\nthere was\n%s", now, before)
	}
}

// traces returns everything that an installation can change, as text.
func (i installer) traces(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(i.dir)
	if err != nil {
		t.Fatal(err)
	}
	var traces strings.Builder
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&traces, entry.Name(), info.Mode(), info.ModTime())
	}
	data := func(path string) map[string]any {
		a, err := i.Call(t.Context(), i.RootToken, http.MethodGet, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return a.Data
	}
	catalog, _ := data("sys/plugins/catalog")["detailed"].([]any)
	for _, plugin := range catalog {
		if entry := plugin.(map[string]any); entry["name"] == harness.PluginName {
			fmt.Fprintln(&traces, entry)
		}
	}
	fmt.Fprintln(&traces, data("sys/mounts"), data(pinPath))
	return traces.String()
}

// documented returns the text of docs/install.md between two others.
func documented(t *testing.T, begin, end string) string {
	t.Helper()
	_, rest, found := strings.Cut(string(harness.ReadFile(t, "../../docs/install.md")), begin)
	text, _, ends := strings.Cut(rest, end)
	if !found || !ends {
		t.Fatalf("docs/install.md does not have %q and then %q", begin, end)
	}
	return text
}

// pinPath is where Vault keeps the version that all mounts of the plugin run.
const pinPath = "sys/plugins/pins/secret/" + harness.PluginName

// sums returns the option that names the checksums of the release.
func sums(t *testing.T) []string {
	t.Helper()
	return []string{"--sums", filepath.Join(release(t), "SHA256SUMS")}
}

// TestInstallRefuses shows what install.sh does not do, and that it leaves no
// trace then.
func TestInstallRefuses(t *testing.T) {
	t.Parallel()
	i, sums := startInstaller(t), sums(t)
	dir, token := i.dir, i.token
	binary := filepath.Join(filepath.Dir(i.script), harness.PluginName)
	target := filepath.Join(dir, harness.PluginName+"-"+harness.PluginVersion)

	setPluginDir(t, i.Server, dir, "")
	i.refuses(t, token, sums, "no plugin_directory")
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
		"another engine":    {i.RootToken, append([]string{"--mount", "cubbyhole"}, sums...), "secrets engine at cubbyhole/"},
		"another directory": {token, append([]string{"--plugin-dir", dir + "/none"}, sums...), "there is no directory"},
		"unknown option":    {token, []string{"--force"}, "usage:"},
		"copy-only alone":   {token, append([]string{"--copy-only"}, sums...), "needs --plugin-dir"},
	} {
		t.Run(name, func(t *testing.T) { i.refuses(t, test.token, test.args, test.want) })
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
		i.refuses(t, token, sums, "exists with another checksum")
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
		sum := harness.SHA256(harness.ReadFile(t, tampered))
		i.refuses(t, token, []string{"--binary", tampered, "--sha256", sum}, "registered with another checksum")
	})
}

// TestInstallElsewhere covers the nodes of a cluster that are not active, and a
// development server of OpenBao.
func TestInstallElsewhere(t *testing.T) {
	t.Parallel()
	i := startInstaller(t)
	t.Run("copy only", func(t *testing.T) {
		dir := t.TempDir()
		i.env = []string{"VAULT_ADDR=http://127.0.0.1:1"}
		i.does(t, i.token, append([]string{"--copy-only", "--plugin-dir", dir}, sums(t)...), "copy it to "+dir)
		copied := harness.ReadFile(t, filepath.Join(dir, harness.PluginName+"-"+harness.PluginVersion))
		if harness.SHA256(copied) != harness.PluginSHA {
			t.Error("the copy is another file")
		}
	})
	t.Run("bao, dev server", func(t *testing.T) {
		dir, addr := startDev(t, i.Server)
		i.env, i.tools = []string{"VAULT_ADDR=" + addr}, bareTools(t, "bao")
		i.does(t, "root", sums(t),
			"copy it to "+dir, "autopay/ runs "+harness.PluginVersion, "next: bao write autopay/config")
	})
}

// startDev runs a development server whose root token is root. It returns its
// plugin directory and its address.
func startDev(t *testing.T, s *harness.Server) (pluginDir, addr string) {
	t.Helper()
	pluginDir = t.TempDir()
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
	err = harness.Poll(harness.StartWithin, func() error {
		out, err := exec.CommandContext(t.Context(), harness.VaultBin, "status", "-address=http://"+listen).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
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
		{
			"downgrade, refused", this, none,
			same("v0.1.0 is older than v0.1.1, the current version: use --downgrade to go back"), next, false,
		},
		{"downgrade on request", with(this, "--downgrade"), none, printed{
			"set autopay/ to v0.1.0 instead of v0.1.1\nreload it\nautopay/ runs v0.1.0",
			"pin v0.1.0 instead of v0.1.1\nreload it\nautopay/ runs v0.1.0",
		}, version, true},
		{"upgrade, half done by hand", upgrade, next, same("reload it\nautopay/ runs v0.1.1"), next, true},
	}

	for _, pinned := range []bool{false, true} {
		t.Run(map[bool]string{false: "not pinned", true: "pinned"}[pinned], func(t *testing.T) {
			t.Parallel()
			i := startInstaller(t)
			spell := strings.NewReplacer(i.dir, "DIR", filepath.Dir(i.script), "HOME", filepath.Dir(newBinary), "NEW",
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
						byHand := map[string]any{field: run.byHand}
						if _, err := i.Root().Logical().WriteWithContext(t.Context(), path, byHand); err != nil {
							t.Fatal(err)
						}
					}

					before, pids := i.traces(t), i.PluginPIDs(t)
					out, _ := i.run(t, i.token, args...)
					_, out, _ = strings.Cut(strings.TrimSpace(out), "\n") // the first line is the checksum
					if got := spell.Replace(out); got != want {
						t.Fatalf("it prints\n%s\nwant\n%s", got, want)
					}
					changed := i.traces(t) != before || !slices.Equal(i.PluginPIDs(t), pids)
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
	i := startInstaller(t)
	section := func(title string) string { return documented(t, "\n## "+title+"\n", "\n## ") }
	blocks := func(title string) []string {
		var blocks []string
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(section(title), -1) {
			blocks = append(blocks, strings.NewReplacer("sudo ", "", "/etc/vault.d/plugins", i.dir).Replace(block[1]))
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
	inline, others := regexp.MustCompile("`(vault [^`]+)`"), section("Namespaces, wrapping, auditing and quotas")
	for _, command := range inline.FindAllStringSubmatch(others, -1) {
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
