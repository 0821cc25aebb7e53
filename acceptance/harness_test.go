//go:build acceptance

// Package acceptance runs the built plugin in real Vault servers, as Vault's
// users will, against a stand-in for Autopay. `make acceptance` builds both
// binaries and runs it.
//
// Each test either mounts the plugin on the shared server, at a path of its
// own, or starts a server it may seal, stop and kill. When a server's life
// ends, every secret and token the suite has used is searched in its logs, its
// audit file, its data and its answers: see canary_test.go.
package acceptance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const pluginName = "vault-plugin-secrets-autopay"

// suite is what all tests share, set once by TestMain.
var suite struct {
	vaultBin      string
	pluginDir     string // holds a copy of the plugin: Vault wants a real path
	pluginSHA     string
	pluginVersion string
	dir           string // of the shared server
}

func TestMain(m *testing.M) {
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
	if s := startedShared(); s != nil {
		s.stop()
		if found := s.leaks(); len(found) > 0 {
			return 1, fmt.Errorf("the shared server leaks:\n%s", strings.Join(found, "\n"))
		}
	}
	return code, nil
}

// prepare finds the two binaries and clears what would steer Vault's client.
func prepare(dir string) error {
	suite.vaultBin = os.Getenv("VAULT_BIN")
	pluginBin := os.Getenv("PLUGIN_BIN")
	if suite.vaultBin == "" || pluginBin == "" {
		return errors.New("VAULT_BIN and PLUGIN_BIN are not set: run `make acceptance`, which builds both")
	}

	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "VAULT_") {
			os.Unsetenv(name)
		}
	}

	// A temporary directory may be a link (macOS); Vault refuses those.
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	suite.dir = dir
	suite.pluginDir = filepath.Join(dir, "plugins")
	if err := os.Mkdir(suite.pluginDir, 0o755); err != nil {
		return err
	}

	binary, err := os.ReadFile(pluginBin)
	if err != nil {
		return err
	}
	suite.pluginSHA = shaOf(binary)
	if err := os.WriteFile(filepath.Join(suite.pluginDir, pluginName), binary, 0o755); err != nil {
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
	suite.pluginVersion = words[len(words)-1]
	return nil
}

// shared is the server of all tests that leave it as they found it.
var shared struct {
	once   sync.Once
	server *server
	err    error
}

func sharedVault(t *testing.T) *server {
	t.Helper()
	shared.once.Do(func() {
		shared.server, shared.err = launch(suite.dir, "shared")
	})
	if shared.err != nil {
		t.Fatalf("shared server: %v", shared.err)
	}
	return shared.server
}

// startedShared returns nil when no test wanted the shared server.
func startedShared() *server {
	shared.once.Do(func() {})
	return shared.server
}

// poll calls try until it returns nil, and returns its last error when that
// takes longer than within.
func poll(within time.Duration, try func() error) error {
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return fmt.Errorf("not within %v: %w", within, err)
		case <-tick.C:
		}
	}
}

// eventually fails the test when cond does not become true in time. what says
// what was waited for.
func eventually(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	err := poll(within, func() error {
		if cond() {
			return nil
		}
		return errors.New(what)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// random returns n random bytes in hex: no encoding changes its spelling.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
