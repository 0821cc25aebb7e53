//go:build acceptance

package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/hashicorp/vault/api"
)

// Mount is the plugin enabled at a path of a server. Its requests carry the root
// token, or the one given to As.
type Mount struct {
	*Server
	At    string // without slashes
	token string // empty: the root token
}

// Enable mounts the plugin at a path of the test's own. When the test ends it is
// unmounted, and the test fails if an answer under that path held a secret.
func Enable(tb testing.TB, s *Server) Mount {
	tb.Helper()
	return EnableAt(tb, s, "autopay-"+Random(4))
}

// EnableAt is Enable at the given path.
func EnableAt(tb testing.TB, s *Server, path string) Mount {
	tb.Helper()
	if err := s.Root().Sys().MountWithContext(tb.Context(), path, &api.MountInput{Type: PluginName}); err != nil {
		tb.Fatalf("enable: %v", err)
	}
	tb.Cleanup(func() {
		_ = s.Root().Sys().Unmount(path) // the server may be gone
		for _, leak := range s.witness.about("/" + path + "/") {
			tb.Error(leak)
		}
	})
	return Mount{Server: s, At: path}
}

// As returns the mount for a user with another token.
func (m Mount) As(token string) Mount {
	m.token = token
	return m
}

// On returns the mount as another node of the same cluster serves it.
func (m Mount) On(node *Server) Mount {
	m.Server = node
	return m
}

// Do sends one request to a path of the mount. Any answer will do; without one
// the test fails.
func (m Mount) Do(tb testing.TB, method, path string, body any) Answer {
	tb.Helper()
	token := m.token
	if token == "" {
		token = m.RootToken
	}
	a, err := m.Call(tb.Context(), token, method, m.At+"/"+path, body)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// Read reads a path of the mount, as Do does.
func (m Mount) Read(tb testing.TB, path string) Answer {
	tb.Helper()
	return m.Do(tb, http.MethodGet, path, nil)
}

// Write writes to a path of the mount, as Do does.
func (m Mount) Write(tb testing.TB, path string, fields map[string]any) Answer {
	tb.Helper()
	return m.Do(tb, http.MethodPut, path, fields)
}

// MustWrite fails the test when a write is not accepted.
func (m Mount) MustWrite(tb testing.TB, path string, fields map[string]any) {
	tb.Helper()
	if a := m.Write(tb, path, fields); a.Status != http.StatusNoContent && a.Status != http.StatusOK {
		tb.Fatalf("write %s: %v", path, a)
	}
}

// Token is the data of a read of the token path.
type Token struct {
	AccessToken       string `json:"access_token"`
	TokenType         string `json:"token_type"`
	Scope             string `json:"scope"`
	ExpireTime        string `json:"expire_time"`
	LastVaultRotation string `json:"last_vault_rotation"`
	RotationPeriod    int64  `json:"rotation_period"`
	TTL               int64  `json:"ttl"`
}

// Token reads the token of a name, and fails the test when none is served. An
// empty name is the default one.
func (m Mount) Token(tb testing.TB, name string) Token {
	tb.Helper()
	token, err := m.Read(tb, TokenPath(name)).Token()
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

// Token parses the answer to a read of a token. Any other answer is an error.
func (a Answer) Token() (Token, error) {
	var parsed struct{ Data Token }
	if a.Status != http.StatusOK {
		return Token{}, fmt.Errorf("read of a token: %v", a)
	}
	err := json.Unmarshal([]byte(a.Body), &parsed)
	return parsed.Data, err
}

// TokenPath returns the path of a name's token. An empty name is left out.
func TokenPath(name string) string { return under("token", name) }

// ConfigPath returns the path of a name's config. An empty name is left out.
func ConfigPath(name string) string { return under("config", name) }

func under(path, name string) string {
	if name == "" {
		return path
	}
	return path + "/" + name
}

// Scrape reads the metrics as Prometheus does, with a Vault token as the bearer.
func (m Mount) Scrape(tb testing.TB, token string) (status int, contentType, text string) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodGet, m.Addr+"/v1/"+m.At+"/metrics", nil)
	if err != nil {
		tb.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: m.witness}).Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), string(body)
}
