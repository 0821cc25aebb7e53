package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	runInBubble(t, "clean ends everything at once, twice too, and nothing is written after it", func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
		time.Sleep(18 * time.Hour) // the refresh is under way and hangs
		synctest.Wait()
		begun := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { // sets the timer meanwhile
			e.InvalidateKey(t.Context(), "token/default")
			_, _ = e.read("token")
		})
		e.clean(t.Context())
		e.clean(t.Context())
		wg.Wait()
		if took := time.Since(begun); took > time.Second {
			t.Errorf("clean took %s", took)
		}
		writes := e.storage.writes.Load()
		e.tick()
		time.Sleep(48 * time.Hour)
		if got := e.storage.writes.Load(); got != writes {
			t.Errorf("%d writes after clean", got-writes)
		}
		for range 2 {
			if c := e.credential("default"); c.timer != nil {
				t.Error("a timer is set after clean")
			}
			e.InvalidateKey(t.Context(), "token/default")
			_, _ = e.read("token") // reads storage again, which sets the timer of a running mount
		}
		if !strings.Contains(e.logs.String(), "mount=autopay/ name=default") {
			t.Errorf("the log does not name the mount:\n%s", e.logs)
		}
		for range 2 {
			e.wantCode(http.StatusServiceUnavailable)(e.write("config", map[string]any{"client_id": "other"}))
		}
	})
	runInBubble(t, "unseal does not wait for Autopay or for loading", func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultHang})
		e.clean(t.Context())
		time.Sleep(48 * time.Hour) // the token dies while Vault is sealed
		begun := time.Now()
		e.start()
		if took := time.Since(begun); took > 0 {
			t.Errorf("initialize took %s", took)
		}
	})
}

func TestNoGoroutineSurvives200Mounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// Those of this bubble, because other tests run beside it. A trace begins with
		// "goroutine 7 [running, synctest bubble 3]:".
		running := func(all bool) string {
			buf := make([]byte, 16<<20)
			return string(buf[:runtime.Stack(buf, all)])
		}
		ours := regexp.MustCompile(`, synctest bubble \d+\]:`).FindString(running(false))
		var before int
		for round := range 201 {
			e := configured(t)
			e.token("token")
			e.clean(t.Context())
			synctest.Wait()
			if round == 0 {
				before = strings.Count(running(true), ours)
			}
		}
		if after := strings.Count(running(true), ours); ours == "" || after != before {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}

// TestStorageIsSealWrapped checks what the engine tells Vault about its two prefixes.
func TestStorageIsSealWrapped(t *testing.T) {
	t.Parallel()
	e := configured(t)
	special := e.SpecialPaths()
	for _, prefix := range []string{"config/", "token/"} {
		if names, err := e.storage.List(t.Context(), prefix); err != nil || len(names) != 1 || !slices.Contains(special.SealWrapStorage, prefix) {
			t.Errorf("%s holds %v (%v), seal-wrapped are %v", prefix, names, err, special.SealWrapStorage)
		}
	}
	if !slices.Equal(special.LocalStorage, []string{"token/"}) || len(special.Unauthenticated) > 0 || len(special.Root) > 0 {
		t.Errorf("local %v, unauthenticated %v, root %v", special.LocalStorage, special.Unauthenticated, special.Root)
	}
}

// TestOpenAPIReferences checks that "ref", which Vault reads, is beside each "$ref".
func TestOpenAPIReferences(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	resp, err := e.HandleRequest(t.Context(), &logical.Request{Operation: logical.HelpOperation, Path: "token", Storage: e.storage})
	if err != nil {
		t.Fatal(err)
	}
	want := `"schema":{"$ref":"#/components/schemas/`
	if text := flatten(resp); !strings.Contains(text, want) || strings.Count(text, `"ref":"#`) != strings.Count(text, `"$ref":"#`) {
		t.Errorf("references are missing in %s", text)
	}
}

// TestSecretLeavesTheHeap dumps the heap and finds no live object with a secret that
// was replaced or deleted. A dump does not show memory that has been freed and not
// yet used again, for which Go promises nothing.
func TestSecretLeavesTheHeap(t *testing.T) { //nolint:paralleltest // it stops the world
	e := newEngine(t, autopaysim.Options{})
	e.client.transport = answer{200, "application/json", goodAnswer} // keeps no request
	// The test holds each secret backwards so that it does not find its own copy.
	backwards := func() []byte { return []byte(strings.ToLower(rand.Text())) }
	forwards := func(b []byte) string {
		b = bytes.Clone(b)
		slices.Reverse(b)
		return string(b)
	}
	write := func(secret []byte) {
		t.Helper()
		data := map[string]any{"client_id": testID, "client_secret": forwards(secret)}
		resp, err := e.write("config", data)
		if err != nil || resp.IsError() {
			t.Fatal(resp, err)
		}
	}
	first, second := backwards(), backwards()
	write(first)
	if n := onHeap(t, first); n == 0 {
		t.Fatal("the search does not find a secret that is in use")
	}
	write(second)
	if n := onHeap(t, first); n != 0 {
		t.Errorf("%d copies of a replaced secret", n)
	}
	if n := onHeap(t, second); n == 0 {
		t.Error("the new secret is not found")
	}
	if resp, err := e.delete("config"); resp != nil || err != nil {
		t.Fatal(resp, err)
	}
	if n := onHeap(t, second); n != 0 {
		t.Errorf("%d copies of a deleted secret", n)
	}
}

// onHeap counts the live copies of a text that is given backwards.
func onHeap(t *testing.T, backwards []byte) int {
	t.Helper()
	for range 3 { // encoding/json's buffers outlive two rounds in a sync.Pool
		runtime.GC()
	}
	dump, err := os.CreateTemp(t.TempDir(), "heap")
	if err != nil {
		t.Fatal(err)
	}
	defer dump.Close()
	debug.WriteHeapDump(dump.Fd())
	heap, err := os.ReadFile(dump.Name())
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(heap)
	return bytes.Count(heap, backwards)
}

// The benchmarks measure the engine without Vault and gRPC. Storage and the simulator
// for Autopay run in the same process.

// newBenchEngine is a production backend on storage that holds n credentials, name-0 and
// up, with a fresh token each.
func newBenchEngine(b *testing.B, n int, opts options) *backend {
	b.Helper()
	storage := &logical.InmemStorage{}
	e, err := newBackend(b.Context(), &logical.BackendConfig{
		StorageView: storage,
		System:      &logical.StaticSystemView{},
		Logger:      hclog.NewNullLogger(),
		BackendUUID: "uuid",
	}, opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.clean(b.Context()) })
	answer := tokenAnswer{accessToken: "sim.GJShAp42qlzzLv2WGm2AtfOGvJW-FtOUDEDje7Tmf2g", scope: "customer_club", lifetime: 24 * time.Hour}
	for i := range n {
		name := fmt.Sprintf("name-%d", i)
		config := newConfigEntry()
		config.ClientID, config.ClientSecret, config.Generation = testID, testSecret, name
		if err := e.putConfig(b.Context(), name, config); err != nil {
			b.Fatal(err)
		}
		entry := tokenEntry{}.withRequest(e.now()).withToken(name, answer, e.now(), e.now())
		if err := e.putToken(b.Context(), name, entry); err != nil {
			b.Fatal(err)
		}
		if _, s, err := e.lookup(b.Context(), name); err != nil || s == nil {
			b.Fatal(s, err)
		}
	}
	return e
}

func tokenRead(name string) *logical.Request {
	return &logical.Request{Operation: logical.ReadOperation, Path: "token/" + name, MountPoint: "autopay/"}
}

// mustAnswer fails the benchmark unless a read was answered with a token. It does
// not call b.Helper, which takes as long as the read.
func mustAnswer(b *testing.B, resp *logical.Response, err error) { //nolint:thelper // see above
	if err != nil || resp == nil || resp.Data["access_token"] == nil {
		b.Fatalf("no token: %v, %v", resp, err)
	}
}

// BenchmarkHotRead is a read of a live token that is not due.
func BenchmarkHotRead(b *testing.B) {
	for _, credentials := range []int{1, 10_000} {
		b.Run(fmt.Sprintf("credentials=%d", credentials), func(b *testing.B) {
			e, req, ctx := newBenchEngine(b, credentials, options{}), tokenRead("name-0"), b.Context()
			b.ReportAllocs()
			for b.Loop() {
				resp, err := e.HandleRequest(ctx, req)
				mustAnswer(b, resp, err)
			}
		})
	}
}

// BenchmarkHotReadContended has all processors read one token.
func BenchmarkHotReadContended(b *testing.B) {
	e, req, ctx := newBenchEngine(b, 1, options{}), tokenRead("name-0"), b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := e.HandleRequest(ctx, req)
			mustAnswer(b, resp, err)
		}
	})
}

// BenchmarkFrameworkRead is the same read through the framework, without hotRead.
func BenchmarkFrameworkRead(b *testing.B) {
	e, req, ctx := newBenchEngine(b, 1, options{}), tokenRead("name-0"), b.Context()
	b.ReportAllocs()
	for b.Loop() {
		resp, err := e.Backend.HandleRequest(ctx, req)
		mustAnswer(b, resp, err)
	}
}

// BenchmarkColdRead is the first read of a credential that was stored unverified:
// it stores the ledger, makes one exchange with the simulator and stores the token.
func BenchmarkColdRead(b *testing.B) {
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
	b.Cleanup(sim.Close)
	e := newBenchEngine(b, 0, options{transport: sim.RoundTripper()})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("name-%d", i)
		config := newConfigEntry()
		config.ClientID, config.ClientSecret, config.Generation = testID, testSecret, name
		if err := e.putConfig(b.Context(), name, config); err != nil {
			b.Fatal(err)
		}
		resp, err := e.HandleRequest(b.Context(), tokenRead(name))
		mustAnswer(b, resp, err)
	}
}

// BenchmarkTick is Vault's periodic call over 10,000 credentials that are not due.
func BenchmarkTick(b *testing.B) {
	e := newBenchEngine(b, 10_000, options{})
	req := &logical.Request{Operation: logical.RollbackOperation, MountPoint: "autopay/"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.HandleRequest(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScrape is a read of the metrics.
func BenchmarkScrape(b *testing.B) {
	for _, credentials := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("credentials=%d", credentials), func(b *testing.B) {
			e := newBenchEngine(b, credentials, options{})
			req := &logical.Request{Operation: logical.ReadOperation, Path: "metrics", MountPoint: "autopay/"}
			for b.Loop() {
				resp, err := e.HandleRequest(b.Context(), req)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(resp.Data[logical.HTTPRawBody].([]byte))), "bytes")
			}
		})
	}
}
