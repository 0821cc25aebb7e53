//go:build acceptance

package consumers

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// example returns one of the examples' files. Each old text, which must be
// there, gives way to the new one after it.
func example(t *testing.T, file string, oldNew ...string) string {
	t.Helper()
	text := string(harness.ReadFile(t, "../../examples/"+file))
	for pair := range slices.Chunk(oldNew, 2) {
		if !strings.Contains(text, pair[0]) {
			t.Fatalf("%s does not say %q", file, pair[0])
		}
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return text
}

// needs skips the test when a shell command fails, for example because a program is missing. In CI that is a failure.
func needs(t *testing.T, commands ...string) {
	t.Helper()
	for _, command := range commands {
		if err := exec.CommandContext(t.Context(), "sh", "-c", command).Run(); err == nil {
			continue
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("%s fails", command)
		}
		t.Skipf("NOT RUN: %s fails", command)
	}
}

// program is a consumer that runs beside the test. When the test ends it is
// stopped, and its output must hold no secret and no token.
type program struct {
	cmd   *exec.Cmd
	log   string         // the file with its output
	input io.WriteCloser // its standard input
	done  chan struct{}  // closed when it has ended
}

func startProgram(t *testing.T, env []string, command ...string) *program {
	t.Helper()
	p := &program{log: filepath.Join(t.TempDir(), "log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), command[0], command[1:]...)
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if p.input, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	harness.DieWithTests(p.cmd)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // exitCode tells how it ended
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it ends its children, too
		force := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
		<-p.done
		force.Stop()
		text := harness.ReadFile(t, p.log)
		for _, quote := range harness.FindSecrets(text) {
			t.Errorf("the output of %s holds %s", filepath.Base(command[0]), quote)
		}
		if t.Failed() {
			t.Logf("%v:\n%s", command, text)
		}
	})
	return p
}

// running reports whether the program has not ended.
func (p *program) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// exitCode waits until the program has ended by itself.
func (p *program) exitCode(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		t.Fatalf("%s is still running after %v", filepath.Base(p.cmd.Path), within)
		return 0
	}
}

// startVaultProgram runs vault agent or vault proxy with a configuration, and
// with more NAME=value pairs in its environment.
func startVaultProgram(t *testing.T, kind, config string, env ...string) *program {
	t.Helper()
	dir := t.TempDir()
	file := harness.WriteFile(t, filepath.Join(dir, kind+".hcl"), config, 0o600)
	return startProgram(t, append(env, "HOME="+dir, "PATH="+os.Getenv("PATH")),
		harness.VaultBin, kind, "-config="+file, "-log-level=debug")
}
