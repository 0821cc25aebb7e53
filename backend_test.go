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

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	runInBubble(t, "clean ends everything at once, twice too, and nothing is written after it", func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(fault("hang"))
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
		wantWithin(t, begun, time.Second)
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
			e.wantCode(http.StatusServiceUnavailable)(e.write("config", fields{"client_id": "other"}))
		}
	})
	runInBubble(t, "unseal does not wait for Autopay or for loading", func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(fault("hang"))
		e.clean(t.Context())
		time.Sleep(48 * time.Hour) // the token dies while Vault is sealed
		begun := time.Now()
		e.start()
		wantWithin(t, begun, 0)
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
		data := fields{"client_id": testID, "client_secret": forwards(secret)}
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

// BenchmarkRequest measures the engine without Vault and gRPC, on storage in the same
// process that holds credentials with a fresh token each.
func BenchmarkRequest(b *testing.B) {
	const read, tick = logical.ReadOperation, logical.RollbackOperation
	for _, test := range []struct {
		name        string
		credentials int
		op          logical.Operation
		path        string
		framework   bool // without hotRead
	}{
		{"a read", 1, read, "token/name-0", false},
		{"a read among many", 10_000, read, "token/name-0", false},
		{"a read through the framework", 1, read, "token/name-0", true},
		{"a tick", 10_000, tick, "", false},
		{"a scrape", 100, read, "metrics", false},
		{"a scrape of many", 10_000, read, "metrics", false},
	} {
		b.Run(test.name, func(b *testing.B) {
			e := newBenchEngine(b, test.credentials, options{})
			req, handle := &logical.Request{Operation: test.op, Path: test.path, MountPoint: "autopay/"}, e.HandleRequest
			if test.framework {
				handle = e.Backend.HandleRequest
			}
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if resp, err := handle(b.Context(), req); err != nil || resp.IsError() {
						b.Error(resp, err)
					}
				}
			})
		})
	}
}

// BenchmarkColdRead is the first read of a credential that was stored unverified:
// it stores the ledger, makes one exchange with the simulator and stores the token.
func BenchmarkColdRead(b *testing.B) {
	sim := autopaysim.New(autopaysim.Options{Clients: map[string]string{testID: testSecret}})
	b.Cleanup(sim.Close)
	e := newBenchEngine(b, 0, options{transport: sim.RoundTripper()})
	for i := 0; b.Loop(); i++ {
		e.putBenchConfig(b, i)
		req := &logical.Request{Operation: logical.ReadOperation, Path: fmt.Sprintf("token/name-%d", i), MountPoint: "autopay/"}
		if resp, err := e.HandleRequest(b.Context(), req); err != nil || resp.IsError() {
			b.Fatal(resp, err)
		}
	}
}

// newBenchEngine is a production backend that holds n credentials, name-0 and up.
func newBenchEngine(b *testing.B, n int, opts options) *backend {
	b.Helper()
	e, err := newBackend(b.Context(), &logical.BackendConfig{StorageView: &logical.InmemStorage{}, System: &logical.StaticSystemView{}}, opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.clean(b.Context()) })
	answer := tokenAnswer{accessToken: "sim.GJShAp42qlzzLv2WGm2AtfOGvJW-FtOUDEDje7Tmf2g", scope: "customer_club", lifetime: 24 * time.Hour}
	for i := range n {
		name := e.putBenchConfig(b, i)
		entry := tokenEntry{}.withRequest(e.now()).withToken(name, answer, e.now(), e.now())
		if err := e.put(b.Context(), tokenPrefix+name, entry); err != nil {
			b.Fatal(err)
		}
		if _, _, err := e.lookup(b.Context(), name); err != nil {
			b.Fatal(err)
		}
	}
	return e
}

// putBenchConfig stores the settings of a credential, whose name is its generation.
func (b *backend) putBenchConfig(tb testing.TB, i int) (name string) {
	tb.Helper()
	config := newConfigEntry()
	name = fmt.Sprintf("name-%d", i)
	config.ClientID, config.ClientSecret, config.Generation = testID, testSecret, name
	if err := b.put(tb.Context(), configPrefix+name, config); err != nil {
		tb.Fatal(err)
	}
	return name
}
