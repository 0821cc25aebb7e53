package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

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
		if err := e.put(b.Context(), configPrefix+name, config); err != nil {
			b.Fatal(err)
		}
		entry := tokenEntry{}.withRequest(e.now()).withToken(name, answer, e.now(), e.now())
		if err := e.put(b.Context(), tokenPrefix+name, entry); err != nil {
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

// TestHotReadAllocations limits what a hot read leaves to the garbage collector: the
// response, its map and the values in it.
func TestHotReadAllocations(t *testing.T) { //nolint:paralleltest // counts allocations
	const most = 6
	e := configured(t)
	e.token("token")
	req := &logical.Request{Operation: logical.ReadOperation, Path: "token", MountPoint: "autopay/"}
	ctx := t.Context()
	got := testing.AllocsPerRun(1000, func() {
		if resp, err := e.HandleRequest(ctx, req); err != nil || resp == nil {
			t.Error(resp, err)
		}
	})
	if got > most {
		t.Errorf("%.0f allocations for a read of a live token, want at most %d", got, most)
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
		if err := e.put(b.Context(), configPrefix+name, config); err != nil {
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
