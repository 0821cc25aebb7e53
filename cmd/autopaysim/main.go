// Command autopaysim runs a simulator of Autopay, for demos and tests. See docs/autopaysim.md.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

const usage = `autopaysim is a simulator of Autopay. POST /oauth/token issues tokens, GET /v1/whoami accepts them, and
/sim/... controls faults and shows counters. It is a test tool: it needs no password and protects nothing.

Example: start it on a free port, ban clients that request more than 3 tokens a day, and request a token:

  autopaysim -client shop=s3cret -ban-after 3 -url-file sim.url &
  until [ -s sim.url ]; do sleep 0.1; done
  curl -H 'Content-Type: application/json' "$(cat sim.url)/oauth/token" -d '{"client_id":"shop",
    "client_secret":"s3cret","audience":"https://api.autopay.io","grant_type":"client_credentials"}'

Flags:
`

// settings are the flags.
type settings struct {
	sim         autopaysim.Options
	listen      string
	allowRemote bool
	tls         bool
	caOut       string
	urlFile     string
	quiet       bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "autopaysim:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. It logs to stderr.
func run(ctx context.Context, args []string, stderr io.Writer) error {
	set, err := parse(args, stderr)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if !set.quiet {
		set.sim.OnRequest = func(e autopaysim.Entry) {
			if e.Path == autopaysim.TokenPath {
				log.Info("token request", "client_id", e.ClientID, "status", e.Status, "duration", e.Duration, "fault", e.Fault)
			}
		}
	}
	if set.urlFile != "" { // an old file would mislead a script that waits for it
		if err := os.Remove(set.urlFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	listener, host, err := set.open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	sim := autopaysim.New(set.sim)
	server := &http.Server{
		Handler:           sim,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	scheme := "http"
	if set.tls {
		scheme = "https"
		hosts := []string{"localhost", "127.0.0.1", "::1"}
		if host != "" {
			hosts = append(hosts, host)
		}
		cert, ca, err := autopaysim.SelfSigned(hosts...)
		if err != nil {
			return err
		}
		if err := write(set.caOut, ca); err != nil {
			return err
		}
		listener = tls.NewListener(listener, &tls.Config{
			Certificates: []tls.Certificate{cert},
			MinVersion:   tls.VersionTLS12,
		})
	}
	url := scheme + "://" + listener.Addr().String()
	if err := write(set.urlFile, []byte(url+"\n")); err != nil {
		return err
	}
	log.Info("listening", "url", url)
	return serve(ctx, server, listener, sim)
}

// parse parses the flags.
func parse(args []string, stderr io.Writer) (settings, error) {
	var set settings
	flags := flag.NewFlagSet("autopaysim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&set.listen, "listen", "127.0.0.1:0", "`address` to listen on; port 0 picks a free one")
	flags.BoolVar(&set.allowRemote, "allow-remote", false, "allow -listen on an address that is not loopback")
	flags.Func("client", "a client as `id=secret`; repeatable (default demo-client=demo-secret)", func(v string) error {
		id, secret, _ := strings.Cut(v, "=")
		if id == "" || secret == "" {
			return errors.New("must be id=secret")
		}
		if set.sim.Clients == nil {
			set.sim.Clients = map[string]string{}
		}
		set.sim.Clients[id] = secret
		return nil
	})
	flags.DurationVar(&set.sim.Lifetime, "lifetime", 24*time.Hour, "lifetime of tokens, in whole seconds")
	flags.IntVar(&set.sim.BanAfter, "ban-after", 0, "`tokens` that a client may get within -ban-window; one more bans it (0: no ban)")
	flags.DurationVar(&set.sim.BanWindow, "ban-window", 24*time.Hour, "time in which -ban-after counts")
	flags.BoolVar(&set.tls, "tls", false, "serve https with a new certificate")
	flags.StringVar(&set.caOut, "ca-out", "", "write the CA certificate for -tls to this `file`, as PEM")
	flags.StringVar(&set.urlFile, "url-file", "", "write the base URL to this `file` once requests are answered")
	flags.BoolVar(&set.quiet, "quiet", false, "do not log token requests")
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	switch {
	case flags.NArg() > 0:
		return settings{}, errors.New("unexpected argument: only flags are allowed")
	case set.sim.Lifetime < time.Second:
		return settings{}, errors.New("-lifetime must be at least 1s")
	case set.sim.BanAfter < 0:
		return settings{}, errors.New("-ban-after must not be negative")
	case set.sim.BanWindow <= 0:
		return settings{}, errors.New("-ban-window must be positive")
	case set.caOut != "" && !set.tls:
		return settings{}, errors.New("-ca-out needs -tls")
	}
	return set, nil
}

// open listens on the address that it has checked, and returns the host that -listen names.
func (set settings) open(ctx context.Context) (net.Listener, string, error) {
	address, err := net.ResolveTCPAddr("tcp", set.listen)
	if err != nil {
		return nil, "", fmt.Errorf("-listen: %w", err)
	}
	if !address.IP.IsLoopback() && !set.allowRemote {
		return nil, "", fmt.Errorf("-listen %s is reachable from other machines, which requires -allow-remote", set.listen)
	}
	host, _, err := net.SplitHostPort(set.listen)
	if err != nil {
		return nil, "", fmt.Errorf("-listen: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address.String())
	return listener, host, err
}

// serve answers until ctx ends. Then it ends the requests that faults delay, and gives the others 5 s.
func serve(ctx context.Context, server *http.Server, listener net.Listener, sim *autopaysim.Server) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	sim.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(ctx) != nil { // a client has opened a connection without a request
		return server.Close()
	}
	return nil
}

// write writes a file atomically, so that a script that waits for it finds it complete. Without a path it does nothing.
func write(path string, content []byte) error {
	if path == "" {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".autopaysim-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()) // an address or a CA certificate, which are public
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}
