//go:build acceptance

package storms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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

// gaps finds the longest time between two good reads.
type gaps struct {
	mu      sync.Mutex // guards what follows
	good    int
	last    time.Time
	longest time.Duration
}

func (g *gaps) mark(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.good++
	if !g.last.IsZero() {
		g.longest = max(g.longest, now.Sub(g.last))
	}
	g.last = now
}

// since forgets the gaps so far and starts again.
func (g *gaps) since(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.longest, g.last = 0, now
}

// end returns the longest gap, including one that is still open.
func (g *gaps) end(now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.longest, now.Sub(g.last))
}

// storm is readers that read all the time.
type storm struct {
	ctx     context.Context //nolint:containedctx // the readers' own, ended by stop
	cancel  context.CancelFunc
	readers sync.WaitGroup
}

// books records what readers of one credential got.
type books struct {
	gaps
	p *harness.Autopay

	mu     sync.Mutex // guards what follows
	tokens []string   // each different one, in the order of first sight
	dead   int        // tokens that Autopay refused when they were received
	own    int        // errors that are Vault's own while it changes its active node
	errors map[string]int
}

// startStorm makes a storm without readers. It ends when stop is called, or with
// the test.
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

// each runs n loops of read, with a pause after each read.
func (s *storm) each(n int, read func(context.Context)) {
	for range n {
		s.readers.Go(func() {
			for s.ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
				read(ctx)
				cancel()
				select {
				case <-s.ctx.Done():
				case <-time.After(readPause):
				}
			}
		})
	}
}

// read adds n readers of a path at a server, which use the official client and
// record in b what they get. A token is checked as soon as it arrives.
func (s *storm) read(n int, from *harness.Server, path string, b *books) {
	client := from.Root()
	s.each(n, func(ctx context.Context) {
		secret, err := client.Logical().ReadWithContext(ctx, path)
		if s.ctx.Err() != nil {
			return // the storm is over
		}
		b.enter(secret, err)
	})
}

// control adds a reader of one of Vault's own paths, whose gaps are Vault's.
func (s *storm) control(from *harness.Server, g *gaps) {
	client := from.Root()
	s.each(1, func(ctx context.Context) {
		if _, err := client.Auth().Token().LookupSelfWithContext(ctx); err == nil {
			g.mark(time.Now())
		}
	})
}

func newBooks(p *harness.Autopay) *books { return &books{p: p, errors: map[string]int{}} }

func (b *books) enter(secret *api.Secret, err error) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	var token string
	if err == nil && secret != nil {
		token, _ = secret.Data["access_token"].(string)
	}
	switch {
	case err != nil && vaultsOwn(err):
		b.own++
	case err != nil:
		b.errors[shortened(err)]++
	case token == "":
		b.errors["an answer without a token"]++
	default:
		b.mark(now)
		if !b.p.Valid(token) {
			b.dead++
		}
		if !slices.Contains(b.tokens, token) {
			b.tokens = append(b.tokens, token)
		}
	}
}

// seen returns the tokens read so far.
func (b *books) seen() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.tokens)
}

// check fails the test for what no reader may ever get.
func (b *books) check(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead > 0 {
		t.Errorf("%d dead tokens were read", b.dead)
	}
	if len(b.tokens) == 0 {
		t.Error("no token was read")
	}
	for text, n := range b.errors {
		t.Errorf("%d reads failed: %s", n, text)
	}
}

// vaultsOwn reports whether an error is Vault's own: no answer, or what it answers
// while its node stops, starts, or knows no active node.
func vaultsOwn(err error) bool {
	var answered *api.ResponseError
	if !errors.As(err, &answered) {
		return true // refused, reset: nobody listens
	}
	if answered.StatusCode < http.StatusInternalServerError {
		return false
	}
	text := strings.Join(answered.Errors, " ")
	for _, words := range []string{
		"Vault is sealed",
		"node not active",             // a standby that knows no active node
		"no active Vault instance",    // the same, a moment later
		"node is not active",          // the same, of the request forwarder
		"error during forwarding RPC", // the active node ended while it answered
		"context canceled",            // a node that steps down leaves its requests
	} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// shortened returns the part of an error that is the same from read to read.
func shortened(err error) string {
	var answered *api.ResponseError
	if errors.As(err, &answered) {
		return fmt.Sprintf("%d %.300q", answered.StatusCode, answered.Errors)
	}
	return fmt.Sprintf("%.300s", err)
}
