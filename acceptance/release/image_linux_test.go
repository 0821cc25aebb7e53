//go:build acceptance

package release

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// TestImage runs the released binary the way the Dockerfile does: as its user, in a
// root that holds nothing but the binary and the directory for its socket. That
// takes no container engine.
func TestImage(t *testing.T) {
	t.Parallel()
	dockerfile := map[string]string{}
	for line := range strings.Lines(string(harness.ReadFile(t, "../../Dockerfile"))) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		dockerfile[instruction] = rest // the last one of each is what counts
	}
	source, target, _ := strings.Cut(dockerfile["COPY"], " ")
	var entrypoint []string
	if err := json.Unmarshal([]byte(dockerfile["ENTRYPOINT"]), &entrypoint); err != nil {
		t.Fatal(err)
	}
	user, group, _ := strings.Cut(dockerfile["USER"], ":")
	uid, err := strconv.Atoi(user)
	if err != nil || uid == 0 || group != user || dockerfile["FROM"] != "scratch" {
		t.Fatalf("the image is from %s and runs as %q", dockerfile["FROM"], dockerfile["USER"])
	}

	dist := release(t)
	source = strings.ReplaceAll(strings.TrimPrefix(source, "dist/"), "${TARGETARCH}", runtime.GOARCH)
	files, err := filepath.Glob(filepath.Join(dist, source))
	if err != nil || len(files) != 1 {
		t.Fatalf("COPY takes %v (%v), want one file", files, err)
	}
	root := t.TempDir()
	const sockets = "/sockets"
	harness.WriteFile(t, root+target, harness.ReadFile(t, files[0]), 0o755)
	if err := os.Mkdir(root+sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{root: 0o755, root + sockets: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}

	cmd := exec.CommandContext(t.Context(), entrypoint[0], entrypoint[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	} else {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: os.Getgid(), Size: 1}}
	}
	// What Vault sets for a plugin that it starts in a container (sdk/helper/pluginutil/run_config.go).
	cmd.Env = []string{
		"VAULT_BACKEND_PLUGIN=6669da05-b1c8-4f49-97d9-c8e5bed98e20",
		"VAULT_VERSION=dummy", "VAULT_PLUGIN_METADATA_MODE=false", "VAULT_PLUGIN_AUTOMTLS_ENABLED=true",
		"PLUGIN_PROTOCOL_VERSIONS=3,4,5", "PLUGIN_MIN_PORT=10000", "PLUGIN_MAX_PORT=25000",
		"PLUGIN_MULTIPLEX_GRPC=true", "PLUGIN_UNIX_SOCKET_DIR=" + sockets,
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		if os.Getuid() != 0 && os.Getenv("CI") == "" {
			t.Skipf("NOT RUN: the kernel gives an ordinary user no root of their own: %v", err)
		}
		t.Fatal(err)
	}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- text
	}()
	var handshake string
	select {
	case handshake = <-line:
	case <-time.After(harness.StartWithin):
	}
	if found := regexp.MustCompile(`^1\|5\|unix\|` + sockets + `/plugin\d+\|grpc\|`).MatchString(handshake); !found {
		t.Errorf("it is not ready for Vault: %q\n%s", handshake, &stderr)
	}
	if runs := harness.ProcStatus(t, cmd.Process.Pid, "Uid"); os.Getuid() == 0 && runs != uid {
		t.Errorf("it runs as user %d, want %d", runs, uid)
	}
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // how does not matter
}
