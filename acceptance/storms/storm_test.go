//go:build acceptance

package storms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// readPause is how long a reader waits between two reads, because it shares the
// machine with the servers.
const readPause = 10 * time.Millisecond

// storm is readers that read all the time, until stop is called or the test ends.
type storm struct {
	ctx     context.Context //nolint:containedctx // the readers' own, ended by stop
	cancel  context.CancelFunc
	readers sync.WaitGroup
}

func startStorm(t *testing.T) *storm {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &storm{ctx: ctx, cancel: cancel}
	t.Cleanup(s.stop)
	return s
}

func (s *storm) stop() {
	s.cancel()
	s.readers.Wait()
}

// read adds n readers of a path at a server, which use the official client and
// record in b what they get.
func (s *storm) read(n int, from *harness.Server, path string, b *books) {
	client := from.Root()
	for range n {
		s.readers.Go(func() {
			for {
				ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
				secret, err := client.Logical().ReadWithContext(ctx, path)
				cancel()
				if s.ctx.Err() != nil {
					return
				}
				b.enter(secret, err)
				time.Sleep(readPause)
			}
		})
	}
}

// books records what readers of one path got.
type books struct {
	p *harness.Autopay // nil: readers of one of Vault's own paths

	mu      sync.Mutex // guards what follows
	good    int
	last    time.Time     // of the last good read
	longest time.Duration // between two good reads
	tokens  []string      // each different one, in the order of first sight
	dead    int           // tokens that Autopay refused when they were received
	own     int           // errors that are Vault's own while its nodes stop and start
	errors  map[string]int
}

func newBooks(p *harness.Autopay) *books { return &books{p: p, errors: map[string]int{}} }

// enter records one read. A token is checked as soon as it arrives.
func (b *books) enter(secret *api.Secret, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var token string
	if err == nil && secret != nil {
		token, _ = secret.Data["access_token"].(string)
	}
	switch {
	case err != nil && vaultsOwn(err):
		b.own++
		return
	case err != nil:
		b.errors[shortened(err)]++
		return
	case b.p == nil:
	case token == "":
		b.errors["an answer without a token"]++
		return
	case !b.p.Valid(token):
		b.dead++
	}
	b.good++
	if !b.last.IsZero() {
		b.longest = max(b.longest, time.Since(b.last))
	}
	b.last = time.Now()
	if !slices.Contains(b.tokens, token) {
		b.tokens = append(b.tokens, token)
	}
}

// since forgets the gaps so far and starts again.
func (b *books) since() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.longest, b.last = 0, time.Now()
}

// gap returns the longest time without a good read, including one that is still open.
func (b *books) gap() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(b.longest, time.Since(b.last)).Round(time.Millisecond)
}

// seen returns the tokens read so far.
func (b *books) seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.tokens)
}

// check fails the test for what no reader may ever get. It is called after the
// storm, and excuses errors that match one of the given patterns.
func (b *books) check(t *testing.T, excused ...string) {
	t.Helper()
	if b.dead > 0 {
		t.Errorf("%d dead tokens were read", b.dead)
	}
	if len(b.tokens) == 0 {
		t.Error("no token was read")
	}
	for _, pattern := range excused {
		matches := regexp.MustCompile(pattern).MatchString
		maps.DeleteFunc(b.errors, func(text string, _ int) bool { return matches(text) })
	}
	if len(b.errors) > 0 {
		t.Errorf("reads failed: %v", b.errors)
	}
}

// vaultsOwn reports whether an error is Vault's own: no answer, or what it answers
// while its node stops, starts, or knows no active node.
func vaultsOwn(err error) bool {
	var answered *api.ResponseError
	if !errors.As(err, &answered) {
		return true // refused, reset: nobody listens
	}
	words := []string{
		"Vault is sealed",
		"node not active",             // a standby that knows no active node
		"no active Vault instance",    // the same, a moment later
		"node is not active",          // the same, of the request forwarder
		"error during forwarding RPC", // the active node ended while it answered
		"context canceled",            // a node that steps down leaves its requests
	}
	text := strings.Join(answered.Errors, " ")
	return answered.StatusCode >= http.StatusInternalServerError &&
		slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
}

// shortened returns the part of an error that is the same from read to read.
func shortened(err error) string {
	var answered *api.ResponseError
	if errors.As(err, &answered) {
		return fmt.Sprintf("%d %.300q", answered.StatusCode, answered.Errors)
	}
	return fmt.Sprintf("%.300s", err)
}
