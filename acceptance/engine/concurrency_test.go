//go:build acceptance

package engine

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// together calls f n times at once and returns the answers.
func together(t *testing.T, n int, f func(i int) (harness.Answer, error)) []harness.Answer {
	t.Helper()
	answers := make([]harness.Answer, n)
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

// getToken reads the token without failing the test, for readers in goroutines.
func getToken(ctx context.Context, m harness.Mount) (harness.Answer, error) {
	return m.Call(ctx, m.RootToken, http.MethodGet, m.At+"/token", nil)
}

// TestColdReadersOfADeadProvider has 200 readers at once when there is no token. They share
// one request, and its failure.
func TestColdReadersOfADeadProvider(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Unverified())
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: http.StatusUnauthorized, Delay: time.Second})
	for _, a := range together(t, 200, func(int) (harness.Answer, error) { return getToken(t.Context(), m) }) {
		if a.Status != http.StatusBadGateway {
			t.Fatalf("%v, want 502", a)
		}
	}
	p.WantRequests(t, cred, 1)
}

// TestReaderWhoLeaves has one of two readers give up during the one request. The
// other reader gets its token.
func TestReaderWhoLeaves(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Unverified())
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 2 * time.Second})

	hasty, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := getToken(hasty, m)
		left <- err
	}()
	harness.Eventually(t, 5*time.Second, "no request leaves", func() bool { return p.Requests(cred.ID) == 1 })
	leave()
	if err := <-left; err == nil {
		t.Error("the reader who left has an answer")
	}
	if a, err := getToken(t.Context(), m); err != nil || a.Status != http.StatusOK {
		t.Errorf("the reader who stayed: %v, %v", a, err)
	}
	p.WantRequests(t, cred, 1)
}

// TestNoLeases reads a token 1,000 times, which must leave no lease.
func TestNoLeases(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Config())
	const readers, reads = 8, 125
	together(t, readers, func(int) (a harness.Answer, err error) {
		for range reads {
			if a, err = getToken(t.Context(), m); err != nil || a.Status != http.StatusOK {
				return a, fmt.Errorf("%v, %w", a, err)
			}
		}
		return a, nil
	})
	p.WantRequests(t, cred, 1)

	leases, err := m.Root().Logical().List("sys/leases/lookup/" + m.At + "/")
	if err != nil || leases != nil {
		t.Errorf("leases: %v, %v", leases, err)
	}
	all, err := m.Root().Logical().List("sys/leases/lookup/")
	if err != nil {
		t.Error(err)
	}
	if all != nil {
		for _, path := range all.Data["keys"].([]any) {
			if path == m.At+"/" {
				t.Errorf("leases under %v", path)
			}
		}
	}
}

// TestWritesAtOnce sends several config writes at once. Each is applied as a
// whole, and the token belongs to the config that is stored.
func TestWritesAtOnce(t *testing.T) {
	t.Parallel()
	m, p, _ := harness.Setup(t)
	creds := []harness.Credential{p.NewCredential(), p.NewCredential(), p.NewCredential(), p.NewCredential()}
	for _, a := range together(t, len(creds), func(i int) (harness.Answer, error) {
		return m.Call(t.Context(), m.RootToken, http.MethodPut, m.At+"/config", creds[i].Config())
	}) {
		if a.Status/100 != 2 {
			t.Errorf("write: %v", a)
		}
	}
	stored := m.Read(t, "config").Data["client_id"]
	token := m.Token(t, "").AccessToken
	if owner := p.Owner(t, token); owner != stored {
		t.Errorf("the token is %s's, the config %v's", owner, stored)
	}
	for _, cred := range creds {
		p.WantRequests(t, cred, 1)
	}
}

// TestThousandColdReaders has 1,000 readers at once when there is no token.
func TestThousandColdReaders(t *testing.T) {
	t.Parallel()
	const readers = 1000
	m, p, cred := harness.Setup(t)
	m.MustWrite(t, "config", cred.Unverified())
	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 4 * time.Second})
	tokens := map[any]int{}
	began := time.Now()
	for _, a := range together(t, readers, func(int) (harness.Answer, error) { return getToken(t.Context(), m) }) {
		if a.Status != http.StatusOK {
			t.Fatal(a)
		}
		tokens[a.Data["access_token"]]++
	}
	if len(tokens) != 1 {
		t.Errorf("%d different tokens", len(tokens))
	}
	p.WantRequests(t, cred, 1)
	t.Logf("FIGURE: %d cold readers at once, provider takes 4 s: %d request to Autopay, all answered after %v",
		readers, p.Requests(cred.ID), time.Since(began).Round(10*time.Millisecond))
}
