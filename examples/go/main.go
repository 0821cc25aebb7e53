package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// main calls API_URL every INTERVAL_MS, from each of WORKERS goroutines, COUNT times or until it is told to stop, and
// prints one line for each call: the status, or what went wrong. With API_BODY it is a POST.
func main() {
	source, err := NewTokenSource(cmp.Or(os.Getenv("AUTOPAY_MOUNT"), "autopay"), os.Getenv("AUTOPAY_NAME"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	client := &http.Client{
		Transport: &Transport{Source: source},
		Timeout:   time.Minute, // with the wait for Vault, if there is no token in hand
		// A redirect could lead to another host, and the token with it.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	interval := time.Duration(setting("INTERVAL_MS", 1000)) * time.Millisecond
	count := setting("COUNT", 0) // 0: without end
	var workers sync.WaitGroup
	for range setting("WORKERS", 1) {
		workers.Go(func() {
			for i := 0; (count == 0 || i < count) && stopped.Err() == nil; i++ {
				if status, err := call(context.WithoutCancel(stopped), client); err != nil {
					fmt.Fprintln(os.Stdout, "error:", err)
				} else {
					fmt.Fprintln(os.Stdout, status)
				}
				select {
				case <-time.After(interval):
				case <-stopped.Done():
				}
			}
		})
	}
	workers.Wait()
}

func call(ctx context.Context, client *http.Client) (int, error) {
	method, body := http.MethodGet, os.Getenv("API_BODY")
	if body != "" {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, os.Getenv("API_URL"), strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}
