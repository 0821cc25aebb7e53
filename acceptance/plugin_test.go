//go:build acceptance

package acceptance

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

func (s *server) registerPlugin(version string) error {
	return s.registerBinary(pluginName, suite.pluginSHA, version)
}

// registerBinary registers a file in the plugin directory as a version of the
// plugin.
func (s *server) registerBinary(file, sha, version string) error {
	err := s.root().Sys().RegisterPlugin(&api.RegisterPluginInput{
		Name:    pluginName,
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

// plugins returns the ids of this server's plugin processes.
func (s *server) plugins() ([]int, error) {
	all, err := children(s.cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(_ int, exe string) bool { return !strings.HasPrefix(filepath.Base(exe), pluginName) })
	return slices.Sorted(maps.Keys(all)), nil
}

func (s *server) pluginPIDs(t *testing.T) []int {
	t.Helper()
	pids, err := s.plugins()
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// mount is the plugin enabled at a path of a server.
type mount struct {
	*server
	at string
}

// enable mounts the plugin at a path of the test's own. When the test ends it
// is unmounted, and its answers must not have held a secret.
func enable(t *testing.T, s *server) mount {
	t.Helper()
	return enableAt(t, s, "autopay-"+random(4))
}

func enableAt(t *testing.T, s *server, path string) mount {
	t.Helper()
	if err := s.root().Sys().MountWithContext(t.Context(), path, &api.MountInput{Type: pluginName}); err != nil {
		t.Fatalf("enable: %v", err)
	}
	t.Cleanup(func() {
		_ = s.root().Sys().Unmount(path) // the server may be gone
		for _, leak := range s.witness.about("/" + path + "/") {
			t.Error(leak)
		}
	})
	return mount{server: s, at: path}
}

// do sends one request with the root token to a path of the mount.
func (m mount) do(t *testing.T, method, path string, body any) answer {
	t.Helper()
	a, err := m.call(t.Context(), m.keys.root, method, m.at+"/"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (m mount) read(t *testing.T, path string) answer {
	t.Helper()
	return m.do(t, http.MethodGet, path, nil)
}

func (m mount) write(t *testing.T, path string, fields map[string]any) answer {
	t.Helper()
	return m.do(t, http.MethodPut, path, fields)
}

// mustWrite writes what is expected to be accepted.
func (m mount) mustWrite(t *testing.T, path string, fields map[string]any) {
	t.Helper()
	if a := m.write(t, path, fields); a.status != http.StatusNoContent && a.status != http.StatusOK {
		t.Fatalf("write %s: %v", path, a)
	}
}

// bearer is the answer to a read of the token path.
type bearer struct {
	AccessToken       string `json:"access_token"`
	TokenType         string `json:"token_type"`
	Scope             string `json:"scope"`
	ExpireTime        string `json:"expire_time"`
	LastVaultRotation string `json:"last_vault_rotation"`
	RotationPeriod    int64  `json:"rotation_period"`
	TTL               int64  `json:"ttl"`
}

// token reads the token of a name, which is expected to be served. An empty
// name is the default one.
func (m mount) token(t *testing.T, name string) bearer {
	t.Helper()
	a := m.read(t, tokenOf(name))
	b, err := parseBearer(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func parseBearer(a answer) (bearer, error) {
	var parsed struct{ Data bearer }
	if a.status != http.StatusOK {
		return bearer{}, fmt.Errorf("read of a token: %v", a)
	}
	err := json.Unmarshal([]byte(a.body), &parsed)
	return parsed.Data, err
}

func tokenOf(name string) string { return under("token", name) }

func configOf(name string) string { return under("config", name) }

func under(path, name string) string {
	if name == "" {
		return path
	}
	return path + "/" + name
}
