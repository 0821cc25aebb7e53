//go:build acceptance

package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// Server is one Vault server process on loopback, with integrated (raft)
// storage, a trace log, an audit file and the plugin registered.
type Server struct {
	Name      string // of the node
	Addr      string // http://127.0.0.1:PORT
	UnsealKey string
	RootToken string

	dir         string // holds a directory of the node's name
	clusterAddr string
	joins       []string // addresses of the nodes to join; empty for the first one
	witness     *witness

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
}

// StartVault runs a server of the test's own, unsealed, with the plugin
// registered. When the test ends the server is stopped, and the test fails if
// it has leaked a secret.
func StartVault(tb testing.TB) *Server {
	tb.Helper()
	s, err := launch(tb.TempDir(), "node0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.retire(tb) })
	return s
}

// retire stops the server for good and fails the test for what it leaked.
func (s *Server) retire(tb testing.TB) {
	tb.Helper()
	s.Stop()
	for _, leak := range s.Leaks() {
		tb.Error(leak)
	}
	if tb.Failed() {
		tb.Logf("what %s logged of note:\n%s", s.Name, s.complaints())
	}
}

// launch starts a server like that of StartVault, with its files below dir. The
// caller stops it. An error holds the end of the server's log.
func launch(dir, name string) (*Server, error) {
	s, err := newServer(dir, name)
	if err != nil {
		return nil, err
	}
	if err := s.initialise(); err != nil {
		s.Stop()
		return nil, fmt.Errorf("%w\n%s", err, s.complaints())
	}
	return s, nil
}

// newServer starts a process that is not yet initialized. Another process may
// take a free port before Vault does, so it tries more than once.
func newServer(dir, name string, joins ...string) (*Server, error) {
	var err error
	for range 5 {
		s := &Server{Name: name, dir: dir, joins: joins, witness: newWitness()}
		if err = s.configure(); err != nil {
			return nil, err
		}
		if err = s.start(); err == nil {
			err = s.mine()
		}
		if err == nil {
			return s, nil
		}
		s.Stop()
		err = fmt.Errorf("%w\n%s", err, s.complaints())
	}
	return nil, err
}

// mine reports an error if another server answers at the address of a new one, whose
// own process is about to end because it can't listen.
func (s *Server) mine() error {
	status, err := s.Client("").Sys().SealStatus()
	if err == nil && status.Initialized && len(s.joins) == 0 {
		return errors.New("another server has taken the port")
	}
	return err
}

// configure chooses the ports and writes the configuration file.
func (s *Server) configure() error {
	var ports [2]string
	for i := range ports {
		// Both stay open until both are chosen: else they could be one.
		l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		ports[i] = l.Addr().String()
	}
	s.Addr, s.clusterAddr = "http://"+ports[0], "https://"+ports[1]

	if err := os.MkdirAll(s.Path("data"), 0o700); err != nil {
		return err
	}
	var join strings.Builder
	for _, addr := range s.joins {
		fmt.Fprintf(&join, "  retry_join { leader_api_addr = %q }\n", addr)
	}
	config := fmt.Sprintf(`
disable_mlock    = true
log_level        = "trace"
plugin_directory = %q
api_addr         = %q
cluster_addr     = %q

# OpenBao allows it only then; Vault does not know the line.
unsafe_allow_api_audit_creation = true

listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}

storage "raft" {
  path                   = %q
  node_id                = %q
  performance_multiplier = 1

  autopilot_reconcile_interval = "600ms"
  autopilot_update_interval    = "300ms"
%s}
`, PluginDir, s.Addr, s.clusterAddr, ports[0], ports[1], s.Path("data"), s.Name, join.String())
	return os.WriteFile(s.Path("vault.hcl"), []byte(config), 0o600)
}

// Path returns the path of a file of the node: server.log, audit.log, vault.hcl,
// or what is below data.
func (s *Server) Path(file string) string { return filepath.Join(s.dir, s.Name, file) }

// start runs the process until its listener answers; it is sealed then.
func (s *Server) start() error {
	log, err := os.OpenFile(s.Path("server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	s.cmd = exec.CommandContext(context.Background(), VaultBin, "server", "-config="+s.Path("vault.hcl"))
	s.cmd.Dir = s.Path(".") // each node of a cluster writes an audit.log of its own
	// A killed plugin leaves its socket in TMPDIR, whose path must be short.
	s.cmd.Env = []string{"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + Dir}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	DieWithTests(s.cmd)
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // how it ended does not matter
		close(exited)
	}(s.cmd, s.exited)

	err = Poll(StartWithin, func() error {
		_, err := s.Client("").Sys().SealStatus()
		if s.ended() {
			return nil
		}
		return err
	})
	if s.ended() {
		return errors.New("the server ended at once")
	}
	return err
}

// ended reports whether the process has ended.
func (s *Server) ended() bool {
	select {
	case <-s.exited:
		return true
	default:
		return false
	}
}

// Stop ends the server politely, and returns when the process has ended. It may
// have ended before.
func (s *Server) Stop() { s.End(syscall.SIGTERM) }

// End ends the server by a signal and its plugins with it, and returns when the
// process has ended. After 20 s it is killed.
func (s *Server) End(signal syscall.Signal) {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	// A killed server can't end its plugins.
	orphans, _ := s.plugins()
	defer func() {
		for _, pid := range orphans {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}()

	_ = s.cmd.Process.Signal(signal)
	select {
	case <-s.exited:
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
}

// PID returns the process ID of the server.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Env returns the environment of a program that uses this server with a token,
// with more NAME=value pairs added.
func (s *Server) Env(token string, more ...string) []string {
	return append([]string{
		"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"),
		"VAULT_ADDR=" + s.Addr, "VAULT_TOKEN=" + token, "VAULT_CLI_NO_COLOR=1",
	}, more...)
}

// complaints returns the last lines of the server log that tell of trouble.
func (s *Server) complaints() string {
	log, err := os.ReadFile(s.Path("server.log"))
	if err != nil {
		return err.Error()
	}
	lines := regexp.MustCompile(`.*(\[ERROR\]|\[WARN\]|panic|Error|`+PluginName+`).*\n?`).FindAllString(string(log), -1)
	return strings.Join(lines[max(0, len(lines)-40):], "")
}

// initialise makes a new server fit for tests: unsealed, audited, with the
// plugin registered.
func (s *Server) initialise() error {
	secrets, err := s.Client("").Sys().Init(&api.InitRequest{SecretShares: 1, SecretThreshold: 1})
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	s.UnsealKey, s.RootToken = secrets.KeysB64[0], secrets.RootToken
	if err := s.unseal(); err != nil {
		return err
	}
	sys := s.Root().Sys()
	err = sys.EnableAuditWithOptions("file", &api.EnableAuditOptions{
		Type:    "file",
		Options: map[string]string{"file_path": "audit.log"},
	})
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return s.Register(PluginName, PluginSHA, PluginVersion)
}

// unseal returns when the server answers requests.
func (s *Server) unseal() error {
	if _, err := s.Client("").Sys().Unseal(s.UnsealKey); err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	return s.ready()
}

// ready waits until the node is active, or a standby that knows the active
// node.
func (s *Server) ready() error {
	return Poll(StartWithin, func() error {
		health, err := s.Client("").Sys().Health()
		if err != nil {
			return err
		}
		if !health.Initialized || health.Sealed {
			return errors.New("sealed")
		}
		leader, err := s.Client("").Sys().Leader()
		if err != nil {
			return err
		}
		if leader.LeaderAddress == "" {
			return errors.New("no active node known")
		}
		// The active node answers 503 here while it loads its mounts.
		_, err = s.Root().Auth().Token().LookupSelf()
		return err
	})
}

// Seal seals the server, whose process goes on.
func (s *Server) Seal(tb testing.TB) {
	tb.Helper()
	if err := s.Root().Sys().Seal(); err != nil {
		tb.Fatalf("seal: %v", err)
	}
}

// Unseal unseals the server and returns when it answers requests.
func (s *Server) Unseal(tb testing.TB) {
	tb.Helper()
	if err := s.unseal(); err != nil {
		tb.Fatal(err)
	}
}

// Restart ends the server by a signal and starts it again, unsealed, on the same
// data and ports. It may have ended before.
func (s *Server) Restart(tb testing.TB, signal syscall.Signal) {
	tb.Helper()
	s.End(signal)
	if err := s.start(); err != nil {
		tb.Fatalf("start again: %v\n%s", err, s.complaints())
	}
	s.Unseal(tb)
}

// Reconfigure changes the server's configuration file and restarts the server
// with it. A change that changes nothing fails the test.
func (s *Server) Reconfigure(tb testing.TB, change func(config string) string) {
	tb.Helper()
	old := string(ReadFile(tb, s.Path("vault.hcl")))
	config := change(old)
	if config == old {
		tb.Fatalf("the change does not fit the configuration:\n%s", old)
	}
	WriteFile(tb, s.Path("vault.hcl"), config, 0o600)
	s.Restart(tb, syscall.SIGTERM)
}
