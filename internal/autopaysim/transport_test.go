package autopaysim

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// start begins a token request in-process; ctx bounds it.
func start(ctx context.Context, t *testing.T, s *Server) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://sim"+TokenPath, strings.NewReader(tokenBody(t)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return s.RoundTripper().RoundTrip(req)
}

// read reads the answer to its end.
func read(t *testing.T, resp *http.Response) (string, error) {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); cerr != nil {
		t.Error(cerr)
	}
	return string(body), err
}

func TestRoundTripper(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	resp, err := start(t.Context(), t, s)
	if err != nil {
		t.Fatal(err)
	}
	body, err := read(t, resp)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Status != "200 OK" || !strings.Contains(body, "sim.") {
		t.Errorf("%s %s %v", resp.Status, body, err)
	}
	client := &http.Client{Transport: s.RoundTripper()}
	resp, err = client.Get("http://sim/sim/reset") //nolint:noctx // the short form is what is tried
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, resp); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%s %v", resp.Status, err)
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		kind  string
		trace string
		err   error
	}{
		"answered": {"", "got wrote", nil},
		"close":    {FaultClose, "got wrote", io.ErrUnexpectedEOF},
		"refused":  {FaultRefused, "", syscall.ECONNREFUSED},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := New(Options{})
			s.SetFault(Fault{Kind: test.kind, Times: min(1, len(test.kind))})
			var calls []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				GotConn:      func(httptrace.GotConnInfo) { calls = append(calls, "got") },
				WroteRequest: func(httptrace.WroteRequestInfo) { calls = append(calls, "wrote") },
			})
			resp, err := start(ctx, t, s)
			if err == nil {
				_, err = read(t, resp)
			}
			if !errors.Is(err, test.err) || strings.Join(calls, " ") != test.trace {
				t.Errorf("error %v, calls %v", err, calls)
			}
			var dial *net.OpError
			if refused := test.kind == FaultRefused; refused != (errors.As(err, &dial) && dial.Op == "dial") || refused != (s.Requests("") == 0) {
				t.Errorf("error %v, %d requests arrived", err, s.Requests(""))
			}
			obtain(t, s) // the fault is used up
		})
	}
}

// TestBubble runs faults under a fake clock. synctest fails the test if a goroutine remains.
func TestBubble(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		fault   Fault
		timeout time.Duration // of the client's context; 0: none
		closeAt time.Duration // when the server closes; 0: not
		took    time.Duration
		err     error // of the exchange, headers and body
		status  int   // in the log
	}{
		"hang, client leaves":  {fault: Fault{Kind: FaultHang}, timeout: time.Minute, took: time.Minute, err: context.DeadlineExceeded},
		"hang, server closes":  {fault: Fault{Kind: FaultHang}, closeAt: time.Hour, took: time.Hour, err: io.ErrUnexpectedEOF},
		"delay":                {fault: Fault{Kind: FaultDelay, Delay: 9 * time.Second}, timeout: 10 * time.Second, took: 9 * time.Second, status: 200},
		"delay, client leaves": {fault: Fault{Kind: FaultDelay, Delay: time.Hour}, timeout: 10 * time.Second, took: 10 * time.Second, err: context.DeadlineExceeded},
		"delay, server closes": {fault: Fault{Kind: FaultDelay, Delay: time.Hour}, closeAt: time.Second, took: time.Second, err: io.ErrUnexpectedEOF},
		"delayed refusal":      {fault: Fault{Kind: FaultStatus, Delay: time.Second}, took: time.Second, status: 503},
		"delayed close":        {fault: Fault{Kind: FaultClose, Delay: time.Second}, took: time.Second, err: io.ErrUnexpectedEOF},
		"drip":                 {fault: Fault{Kind: FaultDrip, Delay: time.Second}, took: 130 * time.Second, status: 200},
		"drip, client leaves":  {fault: Fault{Kind: FaultDrip}, timeout: 10 * time.Second, took: 10 * time.Second, err: context.DeadlineExceeded, status: 200},
		"drip, server closes":  {fault: Fault{Kind: FaultDrip}, closeAt: 1500 * time.Millisecond, took: 1500 * time.Millisecond, err: io.ErrUnexpectedEOF, status: 200},
		"cut":                  {fault: Fault{Kind: FaultCut}, err: io.ErrUnexpectedEOF, status: 200},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{})
				s.SetFault(test.fault)
				if test.closeAt > 0 {
					time.AfterFunc(test.closeAt, s.Close)
				}
				took, err := timed(t, s, test.timeout)
				if took != test.took || !errors.Is(err, test.err) {
					t.Errorf("took %v with error %v, want %v with %v", took, err, test.took, test.err)
				}
				synctest.Wait()
				log := s.Log()
				if len(log) != 1 || log[0].Status != test.status || log[0].Duration != test.took || s.Stats().InFlight != 0 {
					t.Errorf("log %+v, in flight %d", log, s.Stats().InFlight)
				}
			})
		})
	}
}

// timed makes a whole exchange, and gives up after timeout (0: a day).
func timed(t *testing.T, s *Server, timeout time.Duration) (time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cmp.Or(timeout, 24*time.Hour))
	defer cancel()
	begun := s.opts.Now()
	resp, err := start(ctx, t, s)
	if err == nil {
		_, err = read(t, resp)
	}
	return s.opts.Now().Sub(begun), err
}

// TestAbandonedBody checks that readers who stop early leave no goroutine behind.
func TestAbandonedBody(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{FaultDrip, FaultHuge, FaultOverride} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{})
				s.SetFault(Fault{Kind: kind})
				resp, err := start(t.Context(), t, s)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // the next byte is due later, or not taken
				if err := resp.Body.Close(); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if s.Stats().InFlight != 0 {
					t.Error("the handler goes on")
				}
			})
		})
	}
}

func TestInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		s.SetFault(Fault{Kind: FaultDelay, Delay: time.Second})
		ended := make(chan error)
		for range 3 {
			go func() {
				resp, err := start(t.Context(), t, s)
				if err == nil {
					_, err = read(t, resp)
				}
				ended <- err
			}()
		}
		synctest.Wait()
		s.Reset() // keeps the requests that are under way
		if stats := s.Stats(); stats.InFlight != 3 || stats.MaxInFlight != 3 || stats.Clients["demo-client"].InFlight != 3 {
			t.Errorf("stats %+v", stats)
		}
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if stats := s.Stats(); stats.InFlight != 0 || stats.MaxInFlight != 3 || stats.Clients["demo-client"].MaxInFlight != 3 {
			t.Errorf("stats %+v", stats)
		}
	})
}

// TestIssuedBeforeTheDelay checks that a token's life counts from the arrival of its request.
func TestIssuedBeforeTheDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Lifetime: time.Minute})
		s.SetFault(Fault{Kind: FaultDelay, Delay: 45 * time.Second})
		resp, err := start(t.Context(), t, s)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := read(t, resp); err != nil || !strings.Contains(body, `"expires_in":60`) {
			t.Errorf("%s %v", body, err)
		}
		token := s.clients["demo-client"].last
		if left := s.tokens[token].left(s.opts.Now()); left != 15 {
			t.Errorf("%d s left, want 15", left)
		}
	})
}
