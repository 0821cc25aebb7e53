//go:build acceptance

package engine

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// together sends a request with each of the bodies at once and returns the answers.
func together(t *testing.T, m harness.Mount, method, path string, bodies ...any) []harness.Answer {
	t.Helper()
	answers := make([]harness.Answer, len(bodies))
	start := make(chan struct{})
	var senders sync.WaitGroup
	for i, body := range bodies {
		senders.Go(func() {
			<-start
			var err error
			if answers[i], err = m.Call(t.Context(), m.RootToken, method, m.At+"/"+path, body); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	senders.Wait()
	return answers
}

// TestThousandColdReaders has 1,000 readers at once when there is no token. They
// share one request, and its failure.
func TestThousandColdReaders(t *testing.T) {
	t.Parallel()
	const readers, takes = 1000, 4 * time.Second
	for name, test := range map[string]struct {
		fault autopaysim.Fault
		want  int
	}{
		"token":   {autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: takes}, http.StatusOK},
		"failure": {autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 401, Delay: takes}, http.StatusBadGateway},
	} {
		t.Run(name, func(t *testing.T) { //nolint:paralleltest // a thousand at a time are enough
			m, p, cred := harness.Setup(t)
			m.MustWrite(t, "config", cred.Unverified())
			p.SetFault(test.fault)
			tokens := map[any]bool{}
			began := time.Now()
			for _, a := range together(t, m, http.MethodGet, "token", make([]any, readers)...) {
				if a.Status != test.want {
					t.Fatalf("%v, want %d", a, test.want)
				}
				tokens[a.Data["access_token"]] = true
			}
			if len(tokens) != 1 {
				t.Errorf("%d different tokens", len(tokens))
			}
			p.WantRequests(t, cred, 1)
			t.Logf("FIGURE: %d cold readers at once, provider takes %v until the %s: %d request to Autopay, "+
				"all answered after %v", readers, takes, name, p.Requests(cred.ID), time.Since(began).Round(10*time.Millisecond))
		})
	}
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
		_, err := m.Call(hasty, m.RootToken, http.MethodGet, m.At+"/token", nil)
		left <- err
	}()
	harness.Eventually(t, 5*time.Second, "no request leaves", func() bool { return p.Requests(cred.ID) == 1 })
	leave()
	if err := <-left; err == nil {
		t.Error("the reader who left has an answer")
	}
	m.Token(t, "")
	p.WantRequests(t, cred, 1)
}

// TestWritesAtOnce sends several config writes at once. Each is applied as a
// whole, and the token belongs to the config that is stored.
func TestWritesAtOnce(t *testing.T) {
	t.Parallel()
	m, p, _ := harness.Setup(t)
	var creds []harness.Credential
	var configs []any
	for range 4 {
		cred := p.NewCredential()
		creds, configs = append(creds, cred), append(configs, cred.Config())
	}
	for _, a := range together(t, m, http.MethodPut, "config", configs...) {
		a.Want(t, "write", http.StatusNoContent)
	}
	stored := m.Read(t, "config").Data["client_id"]
	if owner := p.Owner(t, m.Token(t, "").AccessToken); owner != stored {
		t.Errorf("the token is %s's, the config %v's", owner, stored)
	}
	for _, cred := range creds {
		p.WantRequests(t, cred, 1)
	}
}
