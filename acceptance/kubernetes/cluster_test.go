//go:build acceptance

package kubernetes

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// cluster is a Kubernetes API server with its etcd. It has no nodes and no
// controllers: objects are kept and service accounts get tokens, but no pod runs.
type cluster struct {
	dir        string
	kubeconfig string // of an administrator
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	programs := filepath.Dir(harness.Tool(t, "kube-apiserver"))
	t.Setenv("PATH", programs+string(os.PathListSeparator)+os.Getenv("PATH"))

	dir, err := os.MkdirTemp("", "kube") //nolint:usetesting // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}

	cert, ca, err := autopaysim.SelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	admin := harness.Random(16)
	keyFile := c.write(t, "server.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	certFile := c.write(t, "server.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	admins := c.write(t, "tokens.csv", []byte(admin+",admin,admin,system:masters\n"))

	// Its only client finds it by the socket, so what it advertises leads nowhere.
	etcd := "unix://" + filepath.Join(dir, "etcd.sock")
	c.start(t, "etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcd, "--advertise-client-urls=http://etcd.invalid:2379",
		"--listen-peer-urls=unix://"+filepath.Join(dir, "peer.sock"))

	// Another process may take the free port first.
	for range 3 {
		port := freePort(t)
		c.write(t, "kubeconfig", fmt.Appendf(nil, `
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "https://127.0.0.1:%s", certificate-authority-data: %q}}]
users: [{name: admin, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
current-context: test
`, port, base64.StdEncoding.EncodeToString(ca), admin))
		c.start(t, "kube-apiserver", "--etcd-servers="+etcd,
			"--bind-address=127.0.0.1", "--secure-port="+port, "--endpoint-reconciler-type=none",
			"--tls-cert-file="+certFile, "--tls-private-key-file="+keyFile,
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file="+certFile, "--service-account-signing-key-file="+keyFile,
			"--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC", "--token-auth-file="+admins)
		err = harness.Poll(harness.StartWithin, func() error {
			_, err := c.kubectl(t, "", "get", "--raw=/readyz")
			return err
		})
		if err == nil {
			return c
		}
	}
	t.Fatalf("kube-apiserver does not start: %v", err)
	return nil
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String()) // it has one
	return port
}

func (c *cluster) write(t *testing.T, name string, text []byte) string {
	t.Helper()
	return harness.WriteFile(t, filepath.Join(c.dir, name), text, 0o600)
}

// start runs a program until the test ends. What it said is shown if the test fails.
func (c *cluster) start(t *testing.T, program string, args ...string) {
	t.Helper()
	log, err := os.CreateTemp(c.dir, program+"-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Env = c.environment()
	cmd.Dir = c.dir
	cmd.Stdout, cmd.Stderr = log, log
	harness.DieWithTests(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // its data goes with it
		_ = cmd.Wait()
		if t.Failed() {
			text := harness.ReadFile(t, log.Name())
			t.Logf("%s said at the end:\n%s", program, text[max(0, len(text)-4000):])
		}
	})
}

func (c *cluster) environment(more ...string) []string {
	return append([]string{"HOME=" + c.dir, "PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + c.kubeconfig}, more...)
}

// kubectl runs it with something on standard input.
func (c *cluster) kubectl(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "kubectl", args...)
	cmd.Env = c.environment()
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// must is kubectl where it has to work.
func (c *cluster) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := c.kubectl(t, stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
