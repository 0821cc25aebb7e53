package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"io"
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
	if _, err := dump.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	// Compared byte by byte from the end, because the text itself must not be in memory.
	n, window := 0, make([]byte, 0, len(backwards))
	for in := bufio.NewReader(dump); ; {
		c, err := in.ReadByte()
		if err != nil {
			return n
		}
		if len(window) == len(backwards) {
			window = window[:copy(window, window[1:])]
		}
		window = append(window, c)
		match := len(window) == len(backwards)
		for i := 0; match && i < len(window); i++ {
			match = window[len(window)-1-i] == backwards[i]
		}
		if match {
			n++
		}
	}
}
