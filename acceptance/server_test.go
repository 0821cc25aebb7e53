//go:build acceptance

package acceptance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startWithin is ample for a start on two busy cores; 3 s is usual.
const startWithin = time.Minute

// server is one Vault server process with integrated (raft) storage.
type server struct {
	name        string
	dir         string // config, data, logs
	addr        string
	clusterAddr string
	joins       []string // addresses of the nodes to join; none: it is the first
	keys        keys
	witness     *witness

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
}

type keys struct{ unseal, root string }

// startVault runs a server of the test's own, unsealed, audited, with the
// plugin registered.
func startVault(t *testing.T) *server {
	t.Helper()
	s, err := launch(t.TempDir(), "node0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.retire(t) })
	return s
}

// retire ends the server for good and fails the test for what it leaked.
func (s *server) retire(t *testing.T) {
	t.Helper()
	s.stop()
	for _, leak := range s.leaks() {
		t.Error(leak)
	}
	if t.Failed() {
		t.Logf("what %s logged of note:\n%s", s.name, s.complaints())
	}
}

// launch starts a server, initialises and unseals it, and makes it fit for
// tests.
func launch(dir, name string) (*server, error) {
	s, err := newServer(dir, name)
	if err != nil {
		return nil, err
	}
	if err := s.initialise(); err != nil {
		s.stop()
		return nil, fmt.Errorf("%w\n%s", err, s.complaints())
	}
	return s, nil
}

// newServer starts a process that is not yet initialised. Another process may
// take a free port before Vault does, so it tries more than once.
func newServer(dir, name string, joins ...string) (*server, error) {
	var err error
	for range 5 {
		s := &server{name: name, dir: dir, joins: joins, witness: newWitness()}
		if err = s.configure(); err != nil {
			return nil, err
		}
		if err = s.start(); err == nil {
			return s, nil
		}
		s.stop()
		err = fmt.Errorf("%w\n%s", err, s.complaints())
	}
	return nil, err
}

// configure chooses the ports and writes the configuration file.
func (s *server) configure() error {
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
	s.addr, s.clusterAddr = "http://"+ports[0], "https://"+ports[1]

	if err := os.MkdirAll(s.path("data"), 0o700); err != nil {
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
`, suite.pluginDir, s.addr, s.clusterAddr, ports[0], ports[1], s.path("data"), s.name, join.String())
	return os.WriteFile(s.path("vault.hcl"), []byte(config), 0o600)
}

func (s *server) path(file string) string { return filepath.Join(s.dir, s.name, file) }

// start runs the process until its listener answers; it is sealed then.
func (s *server) start() error {
	log, err := os.OpenFile(s.path("server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()

	s.cmd = exec.CommandContext(context.Background(), suite.vaultBin, "server", "-config="+s.path("vault.hcl"))
	s.cmd.Dir = s.path(".") // each node of a cluster writes an audit.log of its own
	// A killed plugin leaves its socket in TMPDIR, whose path must be short.
	s.cmd.Env = []string{"HOME=" + s.dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + suite.dir}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	dieWithTests(s.cmd)
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // how it ended does not matter
		close(exited)
	}(s.cmd, s.exited)

	ended := false
	err = poll(startWithin, func() error {
		select {
		case <-s.exited:
			ended = true
			return nil
		default:
		}
		_, err := s.client("").Sys().SealStatus()
		return err
	})
	if ended {
		return errors.New("the server ended at once")
	}
	return err
}

// stop ends the process; it may be called when that has ended already.
func (s *server) stop() { s.end(syscall.SIGTERM) }

func (s *server) end(signal syscall.Signal) {
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

// complaints returns the last lines of the server log that tell of trouble.
func (s *server) complaints() string {
	log, err := os.ReadFile(s.path("server.log"))
	if err != nil {
		return err.Error()
	}
	var lines []string
	for line := range strings.Lines(string(log)) {
		for _, mark := range []string{"[ERROR]", "[WARN]", "panic", "Error", pluginName} {
			if strings.Contains(line, mark) {
				lines = append(lines, line)
				break
			}
		}
	}
	return strings.Join(lines[max(0, len(lines)-40):], "")
}
