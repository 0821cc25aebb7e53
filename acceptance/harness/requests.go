//go:build acceptance

package harness

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

// Client returns the official Go client with the given token. It does not retry.
func (s *Server) Client(token string) *api.Client {
	config := api.DefaultConfig()
	config.Address = s.Addr
	config.HttpClient = &http.Client{Transport: s.witness}
	config.MaxRetries = 0
	client, err := api.NewClient(config)
	if err != nil {
		panic(err) // an address we made ourselves
	}
	client.SetToken(token)
	return client
}

// Root returns the official Go client with the root token.
func (s *Server) Root() *api.Client { return s.Client(s.RootToken) }

// TokenFor returns an orphan token whose only policy has the given rules.
func (s *Server) TokenFor(tb testing.TB, rules string) string {
	tb.Helper()
	policy := "p" + Random(4)
	if err := s.Root().Sys().PutPolicyWithContext(tb.Context(), policy, rules); err != nil {
		tb.Fatalf("policy: %v", err)
	}
	secret, err := s.Root().Auth().Token().CreateOrphan(&api.TokenCreateRequest{
		Policies:        []string{policy},
		NoDefaultPolicy: true,
	})
	if err != nil {
		tb.Fatalf("token: %v", err)
	}
	return secret.Auth.ClientToken
}

// Answer is what came over the wire. Numbers are json.Number, as sent.
type Answer struct {
	Status int
	Body   string
	Fields map[string]any // the whole JSON object; nil when the body is none
	Data   map[string]any // its field data
}

// Warnings returns all warnings in one string.
func (a Answer) Warnings() string { return joined(a.Fields["warnings"]) }

// Errors returns all errors in one string.
func (a Answer) Errors() string { return joined(a.Fields["errors"]) }

func (a Answer) String() string { return fmt.Sprintf("%d %s", a.Status, a.Body) }

func joined(list any) string {
	items, _ := list.([]any)
	words := make([]string, len(items))
	for i, item := range items {
		words[i] = fmt.Sprint(item)
	}
	return strings.Join(words, "; ")
}

// Call sends a request to any path of the server, without the official client,
// which hides part of the answer. A nil body sends none. No answer is an error,
// and so is one that says it is JSON and isn't.
func (s *Server) Call(ctx context.Context, token, method, path string, body any) (Answer, error) {
	var payload io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return Answer{}, err
		}
		payload = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.Addr+"/v1/"+path, payload)
	if err != nil {
		return Answer{}, err
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}

	resp, err := (&http.Client{Transport: s.witness}).Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return Answer{}, err
	}

	a := Answer{Status: resp.StatusCode, Body: strings.TrimSpace(string(text))}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") && len(text) > 0 {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if err := decoder.Decode(&a.Fields); err != nil {
			return a, fmt.Errorf("%s %s: %w: %s", method, path, err, text)
		}
		a.Data, _ = a.Fields["data"].(map[string]any)
	}
	return a, nil
}

// CLI runs the vault command with a token. It returns what the command prints,
// less white space at both ends, and its exit code.
func (s *Server) CLI(tb testing.TB, token string, args ...string) (string, int) {
	tb.Helper()
	cmd := exec.CommandContext(tb.Context(), VaultBin, args...)
	cmd.Env = s.Env(token)
	out, err := cmd.CombinedOutput()

	readsToken := args[0] == "read" && strings.Contains(strings.Join(args, " "), "/token")
	s.witness.see(fmt.Sprintf("output of vault %v", args), out, readsToken)

	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		tb.Fatalf("vault %v: %v", args, err)
	}
	return strings.TrimSpace(string(out)), cmd.ProcessState.ExitCode()
}
