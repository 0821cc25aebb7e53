package main

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestTokenShape has a server in another time zone.
func TestTokenShape(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.opts.now = func() time.Time { return time.Now().In(time.FixedZone("", 7200)) }
		e.restart()
		e.configure("default")
		got := e.token("token")
		delete(got, "access_token")
		want := fields{
			"token_type": "Bearer", "scope": "customer_club",
			"expire_time": "2000-01-02T00:00:00Z", "last_vault_rotation": "2000-01-01T00:00:00Z",
			"rotation_period": int64(64800), "ttl": int64(64800),
		}
		if !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		time.Sleep(1500 * time.Millisecond)
		e.want("token", "ttl", int64(64799)) // 64798.5 rounded up
		e.sim.SetFault(retryAfter(503, "3600"))
		time.Sleep(18 * time.Hour)
		warning := []string{"this token could not be replaced and is served until 2000-01-01T23:59:30Z: " +
			"Autopay answered 503 Service Unavailable: temporarily_unavailable: simulated fault; " +
			"the next attempt is at 2000-01-01T19:00:00Z"}
		if resp := e.ok(e.read("token")); !slices.Equal(resp.Warnings, warning) {
			t.Errorf("got %q, want %q", resp.Warnings, warning)
		}
	})
}

func TestTokenQueryNameIsHarmless(t *testing.T) {
	t.Parallel()
	e := configured(t)
	e.configure("other")
	want := e.token("token")["access_token"]
	resp := e.ok(e.do(t.Context(), logical.ReadOperation, "token", fields{"name": "other", "colour": "other"}))
	if resp.Data["access_token"] != want {
		t.Error("token?name=other reads another credential")
	}
	if !strings.Contains(strings.Join(resp.Warnings, ""), "unrecognized parameters: [colour]") {
		t.Errorf("warnings %q, want one about colour", resp.Warnings)
	}
}

func TestSettingsChangeUnderReaders(t *testing.T) {
	t.Parallel()
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("second", testSecret)
			e.configure("default", "verify", false)
			e.sim.SetFault(once(delay(time.Second)))
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { e.token("token") })
			}
			synctest.Wait()
			wg.Go(func() { _, _ = e.write("config", fields{"client_id": "second", "verify": false}) })
			wg.Wait()
		})
	}
}

func TestReadersOfAChangingNode(t *testing.T) {
	scenes(t, map[string]func(e *engine){
		"a node that has found that it may not write does not try again at each read": func(e *engine) {
			e.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
			time.Sleep(19 * time.Hour)
			calls := e.view.calls.Load()
			for range 1000 {
				e.token("token")
				synctest.Wait()
			}
			if n := e.view.calls.Load() - calls; n > 10 {
				e.t.Errorf("%d calls into Vault for 1000 reads", n)
			}
		},
		"another node damages the config while a reader waits": func(e *engine) {
			e.configure("default", "audience", "x", "verify", false) // no token is requested yet
			e.storage.slow("put", time.Second)
			c := e.credential("default")
			c.lock <- struct{}{} // a job of another request
			go func() {
				time.Sleep(time.Second)
				e.edit("{", "x")
				<-c.lock
			}()
			e.wantCode(500, "is damaged")(e.read("token"))
		},
	})
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
