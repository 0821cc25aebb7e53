package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// held counts the credentials that are kept in memory.
func (e *engine) held() int {
	n := 0
	e.credentials.Range(func(any, any) bool { n++; return true })
	return n
}

// unknownNames calls ask with ten thousand names that nobody configured.
func (e *engine) unknownNames(ask func(name string)) {
	for i := range 10_000 {
		ask(fmt.Sprintf("%s%d", strings.Repeat("x", 100), i))
	}
}

// TestUnknownNamesLeaveNoTrace is for a reader whose policy ends in a
// wildcard: names that are not configured cost no memory, no write and no
// request.
func TestUnknownNamesLeaveNoTrace(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]struct {
		op   logical.Operation
		path string
		code int
	}{
		"token":          {logical.ReadOperation, "token/", http.StatusBadRequest},
		"status":         {logical.ReadOperation, "status/", http.StatusNotFound},
		"config read":    {logical.ReadOperation, "config/", http.StatusNotFound},
		"rotate":         {logical.UpdateOperation, "rotate/", http.StatusBadRequest},
		"config delete":  {logical.DeleteOperation, "config/", http.StatusNotFound}, // of the SDK's nil; a 204 in Vault
		"refused create": {logical.UpdateOperation, "config/", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, autopaysim.Options{})
			e.configure("default")
			e.token("token")
			reads, writes := e.storage.reads.Load(), e.storage.writes.Load()
			e.unknownNames(func(name string) {
				resp, err := e.do(t.Context(), ask.op, ask.path+name, nil)
				if code(resp, err) != ask.code {
					t.Fatalf("%s%s: %v %v", ask.path, name, resp, err)
				}
			})
			if n := e.held(); n != 1 {
				t.Errorf("%d credentials in memory, want 1", n)
			}
			if n := e.storage.writes.Load() - writes; n != 0 {
				t.Errorf("%d writes to storage", n)
			}
			if n := e.storage.reads.Load() - reads; n > 4*10_000 {
				t.Errorf("%d reads of storage for 10,000 requests", n)
			}
			e.wantRequests(1)
		})
	}
}

// TestInvalidationsLeaveNoTrace is the same for what other nodes change:
// keys of any name leave no credential behind.
func TestInvalidationsLeaveNoTrace(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	e.configure("default")
	e.unknownNames(func(name string) { e.InvalidateKey(t.Context(), tokenPrefix+name) })
	if n := e.held(); n != 1 {
		t.Errorf("%d credentials in memory, want 1", n)
	}
}

// TestStorageIsSealWrapped holds what Vault is told about the two prefixes.
func TestStorageIsSealWrapped(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	e.configure("default")
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

// TestOversizedStoredEntries puts a megabyte and more where the engine reads:
// it neither falls nor shows what is in there, and asks Autopay within the
// limit that is left.
func TestOversizedStoredEntries(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("canary", 350_000)
	good := configEntry{ClientID: testID, ClientSecret: testSecret, RequestTimeout: 10, TokenRequestLimit: 1, Generation: "g"}
	entry := func(change func(*tokenEntry)) tokenEntry {
		e := tokenEntry{
			Generation: "g", AccessToken: "t", LastVaultRotation: start2000, ExpireTime: start2000.Add(time.Hour),
			Requests: []int64{start2000.Unix()},
		}
		change(&e)
		return e
	}
	for name, test := range map[string]struct {
		config   any
		token    any
		code     int
		says     string
		requests int
	}{
		"secret": {func(c configEntry) configEntry { c.ClientSecret = big; return c }(good), nil, 502, "Autopay refused the credential", 1},
		"nested": {json.RawMessage(strings.Repeat(`{"client_id":`, 200_000) + "1" + strings.Repeat("}", 200_000)), nil, 500, "is not the JSON", 0},
		"token":  {good, entry(func(e *tokenEntry) { e.AccessToken = big }), 503, "token_request_limit", 0},
		"scope":  {good, entry(func(e *tokenEntry) { e.Scope = big }), 503, "token_request_limit", 0},
		"words": {func(c configEntry) configEntry { c.TokenRequestLimit = 2; return c }(good), entry(func(e *tokenEntry) {
			e.AccessToken, e.Scope, e.ExpireTime, e.LastVaultRotation = "", "", time.Time{}, time.Time{}
			e.Failure = &failedAttempt{Text: big, Kind: refused, Time: start2000, Count: 1, NextAttempt: start2000.Add(time.Hour)}
		}), 200, "", 1}, // dropped, with room for a request
		"ledger": {good, entry(func(e *tokenEntry) { e.Requests = slices.Repeat([]int64{start2000.Unix()}, 1_000_000) }), 200, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, autopaysim.Options{})
			e.opts.now = func() time.Time { return start2000.Add(time.Minute) }
			for key, value := range map[string]any{"config/default": test.config, "token/default": test.token} {
				if value == nil {
					continue
				}
				data, _ := json.Marshal(value)
				if raw, ok := value.(json.RawMessage); ok {
					data = raw
				}
				if err := e.storage.Put(t.Context(), &logical.StorageEntry{Key: key, Value: data}); err != nil {
					t.Fatal(err)
				}
			}
			e.restart()
			for range 3 {
				resp, err := e.read("token")
				if code(resp, err) != test.code || !strings.Contains(say(resp, err), test.says) || len(say(resp, err)) > 500 {
					t.Errorf("got %d %.500q, want %d with %q", code(resp, err), say(resp, err), test.code, test.says)
				}
				resp, err = e.read("status")
				if strings.Contains(flatten(resp)+say(resp, err)+e.logs.String(), "canary") {
					t.Error("what is stored is shown")
				}
			}
			e.wantRequests(test.requests)
		})
	}
}

// TestTokenURLReach is where the secret may be sent: to any https host, since
// who may name one brings the secret, and in plain text to this machine only.
func TestTokenURLReach(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"https://api-auth.autopay.io/oauth/token": true,
		"https://10.0.0.1/token":                  true,
		"https://169.254.169.254/token":           true, // no certificate is issued for it
		"http://localhost:8080/token":             true,
		"http://127.0.0.1/token":                  true,
		"http://127.8.9.10:1/token":               true,
		"http://[::1]/token":                      true,
		"http://[::ffff:127.0.0.1]/token":         true,

		"http://169.254.169.254/latest/meta-data":    false, // AWS, Azure, GCP, OpenStack
		"http://[fd00:ec2::254]/latest/meta-data":    false, // AWS
		"http://[::ffff:169.254.169.254]/":           false,
		"http://100.100.100.200/latest/meta-data":    false, // Alibaba
		"http://metadata.google.internal/":           false,
		"http://169.254.170.2/v2/credentials":        false, // ECS
		"http://10.0.0.1/":                           false,
		"http://0.0.0.0/":                            false, // means this machine to Linux
		"http://[::]/":                               false,
		"http://0/":                                  false,
		"http://127.1/":                              false,
		"http://2130706433/":                         false,
		"http://0x7f000001/":                         false,
		"http://0177.0.0.1/":                         false,
		"http://LOCALHOST/":                          false,
		"http://localhost./":                         false,
		"http://localhost.evil.example/":             false,
		"http://127.0.0.1.evil.example/":             false,
		"http://127.0.0.1@evil.example/":             false,
		"http://evil.example#127.0.0.1/":             false,
		`http://evil.example\127.0.0.1/`:             false,
		"http://[::1%25eth0]/":                       false,
		"file:///etc/passwd":                         false,
		"gopher://127.0.0.1/":                        false,
		"unix:///run/docker.sock":                    false,
		"//api-auth.autopay.io/oauth/token":          false,
		"https:api-auth.autopay.io":                  false,
		"https://api-auth.autopay.io/\r\nHost: evil": false,
	} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			e := newEngine(t, autopaysim.Options{})
			resp, err := e.write("config", map[string]any{
				"client_id": testID, "client_secret": testSecret, "token_url": url, "verify": false,
			})
			if err != nil || resp.IsError() == want {
				t.Errorf("taken: %v, want %v: %v", !resp.IsError(), want, say(resp, err))
			}
			e.wantRequests(0)
		})
	}
}

// TestAnotherSpellingIsAChange spells the stored token_url in other ways: each is a
// change, and must bring client_secret.
func TestAnotherSpellingIsAChange(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	ca := testCA(t)
	e.configure("default", "ca_cert", ca)
	e.wantUnchanged(func() {
		for _, data := range []map[string]any{
			{"token_url": "https://api-auth.autopay.io/oauth/other"},
			{"token_url": "https://api-auth.autopay.io:443/oauth/token"},
			{"token_url": "https://api-auth.autopay.io./oauth/token"},
			{"token_url": "https://api-auth.autopay.io/oauth/token?a=b"},
			{"token_url": "https://API-AUTH.autopay.io/oauth/token"},
			{"token_url": "https://api-auth.autopay.io/oauth/../oauth/token"},
			{"ca_cert": ""},
			{"ca_cert": ca + ca},
			{"ca_cert": ca + "\n"},
			{"ca_cert": testCA(t), "Client_Secret": testSecret},
		} {
			for _, verify := range []bool{true, false} {
				data["verify"] = verify
				resp, err := e.write("config", data)
				if code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), "must bring client_secret") {
					t.Errorf("%v: %v %v", data, resp, err)
				}
			}
		}
	})
	e.wantRequests(1)
}

// TestSecretLeavesTheHeap dumps the heap: no live object holds a secret that
// was replaced or deleted. What the collector has freed but not used again is
// not in a dump; that is the part that Go can't promise.
func TestSecretLeavesTheHeap(t *testing.T) { //nolint:paralleltest // it stops the world
	e := newEngine(t, autopaysim.Options{})
	e.client.transport = answer{200, "application/json", goodAnswer} // keeps no request
	// The test holds each secret backwards, so as not to find its own.
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
	if resp, err := e.do(t.Context(), logical.DeleteOperation, "config", nil); resp != nil || err != nil {
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
	// Compared byte by byte, from the end: the text itself is never put together.
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
