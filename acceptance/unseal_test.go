//go:build acceptance

package acceptance

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/hashicorp/vault/api"
)

// initialise makes a new server fit for tests: unsealed, audited, with the
// plugin registered.
func (s *server) initialise() error {
	secrets, err := s.client("").Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	s.keys = keys{unseal: secrets.KeysB64[0], root: secrets.RootToken}
	if err := s.unseal(); err != nil {
		return err
	}
	sys := s.root().Sys()
	err = sys.EnableAuditWithOptions("file", &api.EnableAuditOptions{
		Type:    "file",
		Options: map[string]string{"file_path": "audit.log"},
	})
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return s.registerPlugin(suite.pluginVersion)
}

// unseal returns when the server serves requests.
func (s *server) unseal() error {
	if _, err := s.client("").Sys().Unseal(s.keys.unseal); err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	return s.ready()
}

// ready waits until the node is active, or a standby that knows the active
// node.
func (s *server) ready() error {
	return poll(startWithin, func() error {
		health, err := s.client("").Sys().Health()
		if err != nil {
			return err
		}
		if !health.Initialized || health.Sealed {
			return errors.New("sealed")
		}
		leader, err := s.client("").Sys().Leader()
		if err != nil {
			return err
		}
		if leader.LeaderAddress == "" {
			return errors.New("no active node known")
		}
		// The active node answers 503 here while it loads its mounts.
		_, err = s.root().Auth().Token().LookupSelf()
		return err
	})
}

func (s *server) seal(t *testing.T) {
	t.Helper()
	if err := s.root().Sys().Seal(); err != nil {
		t.Fatalf("seal: %v", err)
	}
}

func (s *server) mustUnseal(t *testing.T) {
	t.Helper()
	if err := s.unseal(); err != nil {
		t.Fatal(err)
	}
}

// restart ends the server, politely or with kill -9, and starts it on the same
// data and ports.
func (s *server) restart(t *testing.T, signal syscall.Signal) {
	t.Helper()
	s.end(signal)
	if err := s.start(); err != nil {
		t.Fatalf("start again: %v\n%s", err, s.complaints())
	}
	s.mustUnseal(t)
}
