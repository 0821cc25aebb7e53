//go:build acceptance

package release

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
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

// registry is a container registry on loopback, and crane, which also publishes
// releases.
type registry struct{ crane, address string }

func startRegistry(t *testing.T) registry {
	t.Helper()
	r := registry{crane: harness.Tool(t, "crane")}
	serve := exec.CommandContext(t.Context(), r.crane, "registry", "serve", "--address", "127.0.0.1:0")
	harness.DieWithTests(serve)
	stderr, err := serve.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = serve.Wait() }) // the test's context has killed it
	line := firstLine(stderr)
	port := regexp.MustCompile(`serving on port (\d+)\n$`).FindStringSubmatch(line)
	if port == nil {
		t.Fatalf("the registry says %q", line)
	}
	go func() { _, _ = io.Copy(io.Discard, stderr) }() // it logs each request
	r.address = "127.0.0.1:" + port[1]
	return r
}

// do runs crane and returns what it prints.
func (r registry) do(t *testing.T, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), r.crane, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("crane %v: %v\n%s", args, err, &stderr)
	}
	return out
}

// firstLine returns the first line that a process prints, or what it has printed
// after harness.StartWithin.
func firstLine(r io.Reader) string {
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(r).ReadString('\n')
		line <- text
	}()
	select {
	case text := <-line:
		return text
	case <-time.After(harness.StartWithin):
		return ""
	}
}

// imageConfig is what a container engine reads of an image.
type imageConfig struct {
	Config struct {
		User       string
		Entrypoint []string
		Labels     map[string]string
	}
}

// TestImage publishes the image of a release to a registry, as the release
// workflow does, and pulls it again under its second tag. What is pulled is the
// released binary, and runs the way a container engine would run it.
func TestImage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	untar(t, filepath.Join(release(t), releaseImage), dir)
	r := startRegistry(t)
	tag := strings.TrimPrefix(sourceVersion(), "v")
	repository := r.address + "/owner/" + harness.PluginName + ":"
	r.do(t, "push", dir, repository+sourceVersion())
	r.do(t, "tag", repository+sourceVersion(), tag)
	r.do(t, "validate", "--remote", repository+sourceVersion())

	var config imageConfig
	out := r.do(t, "config", "--platform", "linux/"+runtime.GOARCH, repository+tag)
	if err := json.Unmarshal(out, &config); err != nil {
		t.Fatal(err)
	}
	if label := config.Config.Labels["org.opencontainers.image.version"]; label != sourceVersion() {
		t.Errorf("the image has the version %q", label)
	}
	root := t.TempDir()
	rootTar := filepath.Join(dir, "root.tar")
	r.do(t, "export", "--platform", "linux/"+runtime.GOARCH, repository+tag, rootTar)
	untar(t, rootTar, root)
	if sum := harness.SHA256(harness.ReadFile(t, filepath.Join(root, harness.PluginName))); sum != harness.PluginSHA {
		t.Errorf("the image holds the binary %s, the release is %s", sum, harness.PluginSHA)
	}
	runIn(t, root, config)
}

// runIn starts the plugin as the user of the image, in a root that holds nothing
// but the image and the directory for its socket, until it is ready for Vault's
// first call. That takes no container engine.
func runIn(t *testing.T, root string, config imageConfig) {
	t.Helper()
	user, group, _ := strings.Cut(config.Config.User, ":")
	uid, err := strconv.Atoi(user)
	if err != nil || uid == 0 || group != user {
		t.Fatalf("the image runs as %q", config.Config.User)
	}
	const sockets = "/sockets"
	if err := os.Mkdir(root+sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{root: 0o755, root + sockets: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}

	cmd := exec.CommandContext(t.Context(), config.Config.Entrypoint[0], config.Config.Entrypoint[1:]...)
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
	handshake := firstLine(stdout)
	if found := regexp.MustCompile(`^1\|5\|unix\|` + sockets + `/plugin\d+\|grpc\|`).MatchString(handshake); !found {
		t.Errorf("it is not ready for Vault: %q\n%s", handshake, &stderr)
	}
	if runs := harness.ProcStatus(t, cmd.Process.Pid, "Uid"); os.Getuid() == 0 && runs != uid {
		t.Errorf("it runs as user %d, want %d", runs, uid)
	}
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // how does not matter
}
