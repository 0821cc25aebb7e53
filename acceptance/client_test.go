//go:build acceptance

package acceptance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/hashicorp/vault/api"
)

// client is the official Go client with the given token; it does not retry.
func (s *server) client(token string) *api.Client {
	config := api.DefaultConfig()
	config.Address = s.addr
	config.HttpClient = &http.Client{Transport: s.witness}
	config.MaxRetries = 0
	client, err := api.NewClient(config)
	if err != nil {
		panic(err) // an address we made ourselves
	}
	client.SetToken(token)
	return client
}

func (s *server) root() *api.Client { return s.client(s.keys.root) }

// tokenFor returns a token that holds one policy with the given rules.
func (s *server) tokenFor(t *testing.T, rules string) string {
	t.Helper()
	policy := "p" + random(4)
	if err := s.root().Sys().PutPolicyWithContext(t.Context(), policy, rules); err != nil {
		t.Fatalf("policy: %v", err)
	}
	secret, err := s.root().Auth().Token().CreateOrphan(&api.TokenCreateRequest{
		Policies:        []string{policy},
		NoDefaultPolicy: true,
	})
	if err != nil {
		t.Fatalf("token: %v", err)
	}
	return secret.Auth.ClientToken
}

// answer is what went over the wire. Numbers are json.Number, as sent.
type answer struct {
	status int
	body   string
	fields map[string]any // the whole answer
	data   map[string]any
}

// warnings returns all warnings in one string.
func (a answer) warnings() string { return joined(a.fields["warnings"]) }

// errors returns all errors in one string.
func (a answer) errors() string { return joined(a.fields["errors"]) }

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

func joined(list any) string {
	items, _ := list.([]any)
	words := make([]string, len(items))
	for i, item := range items {
		words[i] = fmt.Sprint(item)
	}
	return strings.Join(words, "; ")
}

// call sends a request without the official client, which hides part of the
// answer. A nil body sends none.
func (s *server) call(ctx context.Context, token, method, path string, body any) (answer, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		payload = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.addr+"/v1/"+path, payload)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}

	resp, err := (&http.Client{Transport: s.witness}).Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}

	a := answer{status: resp.StatusCode, body: strings.TrimSpace(string(text))}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && len(text) > 0 {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(&a.fields); err != nil {
			return a, fmt.Errorf("%s %s: %w: %s", method, path, err, text)
		}
		a.data, _ = a.fields["data"].(map[string]any)
	}
	return a, nil
}

// cli runs the vault command and returns what it prints and its exit code.
func (s *server) cli(t *testing.T, token string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), suite.vaultBin, args...)
	cmd.Env = []string{"HOME=" + s.dir, "VAULT_ADDR=" + s.addr, "VAULT_TOKEN=" + token, "VAULT_CLI_NO_COLOR=1"}
	out, err := cmd.CombinedOutput()

	readsToken := args[0] == "read" && strings.Contains(strings.Join(args, " "), "/token")
	s.witness.see(fmt.Sprintf("output of vault %v", args), out, readsToken)

	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("vault %v: %v", args, err)
	}
	return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
}
