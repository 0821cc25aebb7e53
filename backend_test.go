package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"reflect"
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
	scenes(t, map[string]func(e *engine){
		"clean stops the timer": func(e *engine) {
			e.clean(e.t.Context())
			if e.credential("default").timer != nil {
				e.t.Error("it is set")
			}
		},
		"clean ends everything at once, twice too, and nothing is written after it": func(e *engine) {
			e.sim.SetFault(fault("hang"))
			time.Sleep(18 * time.Hour) // the refresh is under way and hangs
			synctest.Wait()
			begun := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() { // sets the timer meanwhile
				e.InvalidateKey(e.t.Context(), "token/default")
				_, _ = e.read("token")
			})
			e.clean(e.t.Context())
			e.clean(e.t.Context())
			wg.Wait()
			wantWithin(e.t, begun, time.Second)
			writes := e.storage.writes.Load()
			e.tick()
			time.Sleep(48 * time.Hour)
			for _, err := range []error{
				e.environment.put(e.life, "config/default", newConfigEntry()), e.remove(e.life, "token/default"),
			} {
				if !errors.Is(err, context.Canceled) {
					e.t.Errorf("got %v", err)
				}
			}
			if got := e.storage.writes.Load(); got != writes {
				e.t.Errorf("%d writes after clean", got-writes)
			}
			for range 2 {
				if c := e.credential("default"); c.timer != nil {
					e.t.Error("a timer is set after clean")
				}
				e.InvalidateKey(e.t.Context(), "token/default")
				_, _ = e.read("token") // reads storage again, which sets the timer of a running mount
			}
			if !strings.Contains(e.logs.String(), "mount=autopay/ name=default") {
				e.t.Errorf("the log does not name the mount:\n%s", e.logs)
			}
			for range 2 {
				e.wantCode(http.StatusServiceUnavailable)(e.write("config", fields{"client_id": "other"}))
			}
		},
		"unseal does not wait for Autopay or for loading": func(e *engine) {
			e.sim.SetFault(fault("hang"))
			e.clean(e.t.Context())
			time.Sleep(48 * time.Hour) // the token dies while Vault is sealed
			begun := time.Now()
			e.start()
			wantWithin(e.t, begun, 0)
		},
		// Vault holds a lock for every mount in the process while it calls Clean.
		"clean does not wait for storage that hangs": func(e *engine) {
			time.Sleep(2 * time.Minute)
			e.storage.slow("put", time.Minute)
			go func() { _, _ = e.write("rotate", nil) }()
			synctest.Wait()
			begun := time.Now()
			e.clean(e.t.Context())
			wantWithin(e.t, begun, cleanTimeout)
			time.Sleep(2 * time.Minute) // the write ends
		},
	})
}

// TestStorageIsSealWrapped checks what the engine tells Vault about its two prefixes, and
// about the fields that hold secrets.
func TestStorageIsSealWrapped(t *testing.T) {
	t.Parallel()
	e := configured(t)
	special := e.SpecialPaths()
	for _, prefix := range []string{"config/", "token/"} {
		if e.stored(prefix+"default") == "" || !slices.Contains(special.SealWrapStorage, prefix) {
			t.Errorf("nothing is at %s, or only %v are seal-wrapped", prefix, special.SealWrapStorage)
		}
	}
	special.SealWrapStorage = nil
	if want := (logical.Paths{LocalStorage: []string{"token/"}}); !reflect.DeepEqual(*special, want) {
		t.Errorf("special paths are %+v, want %+v", *special, want)
	}
	secret, token := e.Route("config").Fields[fieldClientSecret], tokenFields()["access_token"]
	if !secret.DisplayAttrs.Sensitive || !token.DisplayAttrs.Sensitive {
		t.Error("secrets are not marked as sensitive")
	}
}

// TestOpenAPIReferences checks that "ref", which Vault reads, is beside each "$ref".
func TestOpenAPIReferences(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	help := &logical.Request{Operation: logical.HelpOperation, Path: "token", Storage: e.storage}
	text := flatten(e.ok(e.HandleRequest(t.Context(), help)))
	want := `"schema":{"$ref":"#/components/schemas/`
	if !strings.Contains(text, want) || strings.Count(text, `"ref":"#`) != strings.Count(text, `"$ref":"#`) {
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
	write := func(secret []byte) {
		t.Helper()
		forwards := bytes.Clone(secret)
		slices.Reverse(forwards)
		e.configure("default", "client_secret", string(forwards))
	}
	first, second := backwards(), backwards()
	write(first)
	onHeap(t, first, true)
	write(second)
	onHeap(t, first, false)
	onHeap(t, second, true)
	e.forget("default")
	onHeap(t, second, false)
}

// onHeap checks whether a secret, which is given backwards, has live copies.
func onHeap(t *testing.T, backwards []byte, want bool) {
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
	if n := bytes.Count(heap, backwards); (n > 0) != want {
		t.Errorf("%d copies, want some: %v", n, want)
	}
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
			req := &logical.Request{Operation: test.op, Path: test.path, MountPoint: "autopay/"}
			handle := e.HandleRequest
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
		name := e.putBenchConfig(b, i)
		req := &logical.Request{Operation: logical.ReadOperation, Path: "token/" + name, MountPoint: "autopay/"}
		if resp, err := e.HandleRequest(b.Context(), req); err != nil || resp.IsError() {
			b.Fatal(resp, err)
		}
	}
}

// newBenchEngine is a production backend that holds n credentials, name-0 and up.
func newBenchEngine(b *testing.B, n int, opts options) *backend {
	b.Helper()
	conf := &logical.BackendConfig{StorageView: &logical.InmemStorage{}, System: &logical.StaticSystemView{}}
	e, err := newBackend(b.Context(), conf, opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.clean(b.Context()) })
	answer := tokenAnswer{"sim.GJShAp42qlzzLv2WGm2AtfOGvJW-FtOUDEDje7Tmf2g", "customer_club", 24 * time.Hour}
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
