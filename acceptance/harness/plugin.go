//go:build acceptance

package harness

import (
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// NextVersion is a version that the plugin can be upgraded to. Source:
// scripts/testtools.sh, which builds it.
const NextVersion = "v0.1.1"

// CopyNextVersion copies the plugin as NextVersion to path, and returns the
// SHA-256 of the file in hex.
func CopyNextVersion(tb testing.TB, path string) string {
	tb.Helper()
	binary := ReadFile(tb, Tool(tb, PluginName+"-"+NextVersion))
	WriteFile(tb, path, binary, 0o755)
	return SHA256(binary)
}

// Register registers a file in the plugin directory, with its SHA-256 in hex, as
// a version of the plugin. Vault's refusal is the error.
func (s *Server) Register(file, sha, version string) error {
	err := s.Root().Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name:    PluginName,
		Type:    api.PluginTypeSecrets,
		Command: file,
		SHA256:  sha,
		Version: version,
	})
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	return nil
}

// AddPlugin registers another plugin, which scripts/testtools.sh made as tool.
func (s *Server) AddPlugin(tb testing.TB, name, tool string, kind api.PluginType) {
	tb.Helper()
	binary := ReadFile(tb, Tool(tb, tool))
	WriteFile(tb, filepath.Join(PluginDir, tool), binary, 0o755)
	err := s.Root().Sys().RegisterPluginWithContext(tb.Context(), &api.RegisterPluginInput{
		Name: name, Type: kind, Command: tool, SHA256: SHA256(binary),
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// plugins returns the process IDs of this server's plugins.
func (s *Server) plugins() ([]int, error) {
	all, err := children(s.PID())
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(_ int, exe string) bool { return !strings.HasPrefix(filepath.Base(exe), PluginName) })
	return slices.Sorted(maps.Keys(all)), nil
}

// PluginPIDs returns the process IDs of this server's plugins, in order.
func (s *Server) PluginPIDs(tb testing.TB) []int {
	tb.Helper()
	pids, err := s.plugins()
	if err != nil {
		tb.Fatal(err)
	}
	return pids
}

// Reload restarts the mount's plugin through Vault's API, and fails the test
// when the processes stay the same.
func (m Mount) Reload(tb testing.TB) {
	tb.Helper()
	before := m.PluginPIDs(tb)
	if _, err := m.Root().Sys().ReloadPlugin(&api.ReloadPluginInput{Mounts: []string{m.At + "/"}}); err != nil {
		tb.Fatalf("reload: %v", err)
	}
	if now := m.PluginPIDs(tb); slices.Equal(now, before) {
		tb.Errorf("the plugin's processes are %v, as before the reload", now)
	}
}

// KillPlugin kills the server's plugin processes with SIGKILL and waits until
// Vault has started the plugin again. Requests before that fail on the dead
// connection. The mount's default credential must be configured.
func (m Mount) KillPlugin(tb testing.TB) {
	tb.Helper()
	pids := m.PluginPIDs(tb)
	if len(pids) == 0 {
		tb.Fatal("no plugin process to kill")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			tb.Fatal(err)
		}
	}
	Eventually(tb, 10*time.Second, "the plugin does not come back", func() bool {
		alive := slices.ContainsFunc(m.PluginPIDs(tb), func(pid int) bool { return slices.Contains(pids, pid) })
		return !alive && m.Read(tb, "config").Status == http.StatusOK
	})
}
