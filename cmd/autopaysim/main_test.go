package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program is a run of the command under test.
type program struct {
	url    string
	log    *bufio.Scanner // after the line with the address
	ended  <-chan error
	cancel context.CancelFunc
}

// launch runs the command until it listens, with -url-file and args.
func launch(t *testing.T, args ...string) program {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "url")
	if err := os.WriteFile(file, []byte("http://stale"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		err := run(ctx, append([]string{"-url-file", file}, args...), in)
		_ = in.Close() // never fails
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		_ = out.Close() // never fails
		<-done
	})
	log := bufio.NewScanner(out)
	if !log.Scan() || !strings.Contains(log.Text(), "listening") {
		t.Fatalf("first line %q", log.Text())
	}
	url, err := fs.ReadFile(os.DirFS(dir), "url")
	if err != nil {
		t.Fatal(err)
	}
	return program{strings.TrimSpace(string(url)), log, ended, cancel}
}

// ask sends a token request and returns its status, 0 if it fails.
func ask(t *testing.T, client *http.Client, url, id, secret string) int {
	t.Helper()
	body := `{"client_id":"` + id + `","client_secret":"` + secret +
		`","audience":"https://api.autopay.io","grant_type":"client_credentials"}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/oauth/token", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Log(err)
		return 0
	}
	_ = resp.Body.Close() // not read
	return resp.StatusCode
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestRun(t *testing.T) {
	t.Parallel()
	p := launch(t, "-client", "a=1", "-client", "b=2=3", "-ban-after", "1")
	logged := make(chan []string, 1)
	go func() {
		var lines []string
		for p.log.Scan() {
			lines = append(lines, p.log.Text())
		}
		logged <- lines
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i, test := range []struct {
		id, secret string
		want       int
	}{{"a", "1", 200}, {"a", "1", 403}, {"b", "2=3", 200}, {"demo-client", "demo-secret", 401}} {
		if got := ask(t, client, p.url, test.id, test.secret); got != test.want {
			t.Errorf("request %d: status %d, want %d", i, got, test.want)
		}
	}
	p.cancel()
	if err := <-p.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
	lines := strings.Join(<-logged, "\n")
	if strings.Count(lines, "token request") != 4 || !strings.Contains(lines, "client_id=a status=403") {
		t.Errorf("log:\n%s", lines)
	}
	if strings.Contains(lines, "demo-") || strings.Contains(lines, "2=3") || strings.Contains(lines, "sim.") {
		t.Errorf("a secret in the log:\n%s", lines)
	}
	if got := ask(t, client, p.url, "b", "2=3"); got != 0 {
		t.Errorf("answers %d after its end", got)
	}
}

// TestRunEndsHangs stops the program while a fault holds a request.
func TestRunEndsHangs(t *testing.T) {
	t.Parallel()
	p := launch(t, "-quiet")
	// One connection per request: an unused spare connection would delay the end.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/sim/fault", strings.NewReader(`{"kind":"hang"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close() // empty
	status := make(chan int, 1)
	go func() { status <- ask(t, client, p.url, "demo-client", "demo-secret") }()
	for !strings.Contains(get(t, client, p.url+"/sim/stats"), `"in_flight":1`) {
		continue // until the request has arrived
	}
	p.cancel()
	select {
	case err := <-p.ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(4 * time.Second): // less than running requests are given
		t.Fatal("waits for the request that hangs")
	}
	if got := <-status; got != 0 {
		t.Errorf("status %d, want a cut connection", got)
	}
	if p.log.Scan() {
		t.Errorf("-quiet, and yet %q", p.log.Text())
	}
}

func TestRunTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launch(t, "-tls", "-ca-out", filepath.Join(dir, "ca.pem"), "-quiet")
	pem, err := fs.ReadFile(os.DirFS(dir), "ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	if got := ask(t, client, p.url, "demo-client", "demo-secret"); got != http.StatusOK || !strings.HasPrefix(p.url, "https://127.0.0.1:") {
		t.Errorf("%s: status %d", p.url, got)
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tests := map[string]struct {
		args []string
		want string
	}{
		"every interface": {[]string{"-listen", ":0"}, "-allow-remote"},
		"another address": {[]string{"-listen", "192.0.2.1:0"}, "-allow-remote"},
		"no address":      {[]string{"-listen", "127.0.0.1"}, "-listen: "},
		"client":          {[]string{"-client", "a"}, "id=secret"},
		"empty secret":    {[]string{"-client", "a="}, "id=secret"},
		"lifetime":        {[]string{"-lifetime", "500ms"}, "-lifetime"},
		"ban after":       {[]string{"-ban-after", "-1"}, "-ban-after"},
		"ban window":      {[]string{"-ban-window", "0s"}, "-ban-window"},
		"CA without TLS":  {[]string{"-ca-out", "x"}, "-ca-out"},
		"argument":        {[]string{"serve"}, "only flags"},
		"unknown flag":    {[]string{"-port", "1"}, "-port"},
		"no such folder":  {[]string{"-url-file", filepath.Join(dir, "none", "url")}, "no such file"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // if it serves, it ends at once without an error
			err := run(ctx, test.args, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one about %s", err, test.want)
			}
		})
	}
}

func TestRunAllowRemote(t *testing.T) {
	t.Parallel()
	p := launch(t, "-listen", ":0", "-allow-remote", "-tls")
	if !strings.HasPrefix(p.url, "https://") {
		t.Errorf("url %s", p.url)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := run(t.Context(), []string{"-h"}, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("error %v", err)
	}
	page, err := os.ReadFile("../../docs/autopaysim.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"-listen", "-allow-remote", "-client", "-lifetime", "-ban-after", "-ban-window", "-tls", "-ca-out", "-url-file", "-quiet",
	} {
		if !strings.Contains(out.String(), "\n  "+name) || !strings.Contains(string(page), "| `"+name+"` |") {
			t.Errorf("%s is missing from the help or from docs/autopaysim.md", name)
		}
	}
	if !strings.Contains(out.String(), "Example:") {
		t.Error("no example")
	}
}
