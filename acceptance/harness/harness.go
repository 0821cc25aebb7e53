//go:build acceptance

// Package harness is what all acceptance suites share: real Vault servers and
// clusters with the built plugin, a simulator of Autopay, an HTTP client that
// sees whole answers, and a search for secrets in everything a server leaves
// behind.
//
// A suite calls Main from its TestMain. Each of its tests then either mounts
// the plugin on the suite's shared server (Setup, Enable), at a path of its
// own, or starts a server that it may seal, stop and kill (StartVault,
// StartCluster). Helpers that take a testing.TB fail the test on an error and
// clean up when the test ends.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// PluginName is the name of the plugin's binary, and of the plugin in Vault.
const PluginName = "vault-plugin-secrets-autopay"

// What a suite runs, set by Main.
var (
	VaultBin      string // the Vault binary, or OpenBao's
	OpenBao       bool   // whether it is OpenBao's
	Dir           string // a directory of the suite's own, removed at its end
	PluginDir     string // the plugin directory of all its servers; it holds the plugin as PluginName
	PluginSHA     string // the plugin's SHA-256, in hex
	PluginVersion string // the version that the plugin reports
)

// Main runs the tests of a suite and exits. It needs VAULT_BIN and PLUGIN_BIN,
// the paths of the two binaries, and fails the suite when its shared server has
// leaked a secret.
func Main(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "acceptance:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "autopay-acceptance-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)

	if err := prepare(dir); err != nil {
		return 1, err
	}

	code := m.Run()
	shared.once.Do(func() {}) // no test wanted a server
	if s := shared.server; s != nil {
		s.Stop()
		if found := s.Leaks(); len(found) > 0 {
			return 1, fmt.Errorf("the shared server leaks:\n%s", strings.Join(found, "\n"))
		}
	}
	return code, nil
}

// prepare finds the two binaries and clears what would steer Vault's client.
func prepare(dir string) error {
	VaultBin = os.Getenv("VAULT_BIN")
	pluginBin := os.Getenv("PLUGIN_BIN")
	if VaultBin == "" || pluginBin == "" {
		return errors.New("VAULT_BIN and PLUGIN_BIN are not set: run the tests with make, which builds both")
	}

	server, err := exec.CommandContext(context.Background(), VaultBin, "version").Output()
	if err != nil {
		return fmt.Errorf("%s version: %w", VaultBin, err)
	}
	OpenBao = strings.HasPrefix(string(server), "OpenBao")

	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "VAULT_") {
			os.Unsetenv(name)
		}
	}

	// A temporary directory may be a link (macOS), and Vault refuses links.
	if Dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	// Vault wants a real path, so the directory holds a copy of the plugin.
	PluginDir = filepath.Join(Dir, "plugins")
	if err := os.Mkdir(PluginDir, 0o755); err != nil {
		return err
	}
	binary, err := os.ReadFile(pluginBin)
	if err != nil {
		return err
	}
	PluginSHA = SHA256(binary)
	if err := os.WriteFile(filepath.Join(PluginDir, PluginName), binary, 0o755); err != nil {
		return err
	}

	version, err := exec.CommandContext(context.Background(), pluginBin, "-version").Output()
	if err != nil {
		return fmt.Errorf("%s -version: %w", pluginBin, err)
	}
	words := strings.Fields(string(version))
	if len(words) == 0 {
		return fmt.Errorf("%s -version prints nothing", pluginBin)
	}
	PluginVersion = words[len(words)-1]
	return nil
}

// shared is the server of all tests that leave it as they found it.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

// SharedVault returns the suite's shared server, and starts it for the first
// test that asks. Main stops it.
func SharedVault(tb testing.TB) *Server {
	tb.Helper()
	shared.once.Do(func() {
		shared.server, shared.err = launch(Dir, "shared")
	})
	if shared.err != nil {
		tb.Fatalf("shared server: %v", shared.err)
	}
	return shared.server
}

// Setup mounts the plugin on the shared server, and starts a simulator for
// Autopay with one client, whose credential is not yet written to the mount.
func Setup(tb testing.TB) (Mount, *Autopay, Credential) {
	tb.Helper()
	p := StartAutopay(tb)
	return Enable(tb, SharedVault(tb)), p, p.NewCredential()
}
