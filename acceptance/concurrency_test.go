//go:build acceptance

package acceptance

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// together runs f n times at once and returns the answers.
func together(t *testing.T, n int, f func(i int) (answer, error)) []answer {
	t.Helper()
	answers := make([]answer, n)
	start := make(chan struct{})
	var readers sync.WaitGroup
	for i := range n {
		readers.Go(func() {
			<-start
			var err error
			if answers[i], err = f(i); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	readers.Wait()
	return answers
}

// getToken is for readers in goroutines of their own.
func (m mount) getToken(ctx context.Context) (answer, error) {
	return m.call(ctx, m.keys.root, http.MethodGet, m.at+"/token", nil)
}

// TestColdReaders lets 200 readers find no token at once: they share one
// request.
func TestColdReaders(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.unproved())
	p.asked(t, cred, 0)

	// Slow, so that all are there before the answer is.
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: time.Second})
	tokens := map[string]int{}
	for _, a := range together(t, 200, func(int) (answer, error) { return m.getToken(t.Context()) }) {
		if a.status != http.StatusOK {
			t.Fatal(a)
		}
		tokens[fmt.Sprint(a.data["access_token"])]++
	}
	if len(tokens) != 1 {
		t.Errorf("%d different tokens", len(tokens))
	}
	p.asked(t, cred, 1)
}

// TestColdReadersOfADeadProvider share one failure too.
func TestColdReadersOfADeadProvider(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.unproved())
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: http.StatusUnauthorized, Delay: time.Second})
	for _, a := range together(t, 200, func(int) (answer, error) { return m.getToken(t.Context()) }) {
		if a.status != http.StatusBadGateway {
			t.Fatalf("%v, want 502", a)
		}
	}
	p.asked(t, cred, 1)
}

// TestReaderWhoLeaves gives up while the one request is under way: it goes on
// for the reader who stays.
func TestReaderWhoLeaves(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.unproved())
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 2 * time.Second})

	hasty, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := m.getToken(hasty)
		left <- err
	}()
	eventually(t, 5*time.Second, "no request leaves", func() bool { return p.Requests(cred.id) == 1 })
	leave()
	if err := <-left; err == nil {
		t.Error("the reader who left has an answer")
	}
	if a, err := m.getToken(t.Context()); err != nil || a.status != http.StatusOK {
		t.Errorf("the reader who stayed: %v, %v", a, err)
	}
	p.asked(t, cred, 1)
}

// TestNoLeases reads a token 1,000 times, which leaves nothing to revoke.
func TestNoLeases(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	m.mustWrite(t, "config", cred.config())
	const readers, reads = 8, 125
	together(t, readers, func(int) (a answer, err error) {
		for range reads {
			if a, err = m.getToken(t.Context()); err != nil || a.status != http.StatusOK {
				return a, fmt.Errorf("%v, %w", a, err)
			}
		}
		return a, nil
	})
	p.asked(t, cred, 1)

	leases, err := m.root().Logical().List("sys/leases/lookup/" + m.at + "/")
	if err != nil || leases != nil {
		t.Errorf("leases: %v, %v", leases, err)
	}
	all, err := m.root().Logical().List("sys/leases/lookup/")
	if err != nil {
		t.Error(err)
	}
	if all != nil {
		for _, path := range all.Data["keys"].([]any) {
			if path == m.at+"/" {
				t.Errorf("leases under %v", path)
			}
		}
	}
}

// TestWritesAtOnce changes one credential from many sides: each write is
// whole, and the token served is that of the config stored.
func TestWritesAtOnce(t *testing.T) {
	t.Parallel()
	m, p, _ := setup(t)
	creds := []credential{p.newCredential(), p.newCredential(), p.newCredential(), p.newCredential()}
	for _, a := range together(t, len(creds), func(i int) (answer, error) {
		return m.call(t.Context(), m.keys.root, http.MethodPut, m.at+"/config", creds[i].config())
	}) {
		if a.status/100 != 2 {
			t.Errorf("write: %v", a)
		}
	}
	stored := m.read(t, "config").data["client_id"]
	token := m.token(t, "").AccessToken
	if owner := p.owner(t, token); owner != stored {
		t.Errorf("the token is %s's, the config %v's", owner, stored)
	}
	for _, cred := range creds {
		p.asked(t, cred, 1)
	}
}
