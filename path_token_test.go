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

func TestTokenShape(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
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
	})
}

func TestTokenQueryNameIsHarmless(t *testing.T) {
	t.Parallel()
	e := configured(t)
	e.configure("other")
	want := e.token("token")["access_token"]
	resp, err := e.do(t.Context(), logical.ReadOperation, "token", fields{"name": "other"})
	if err != nil || resp.Data["access_token"] != want {
		t.Errorf("token?name=other reads another credential: %v %v", resp, err)
	}
	resp, err = e.do(t.Context(), logical.ReadOperation, "token", fields{"colour": "other"})
	if err != nil || len(resp.Warnings) != 1 || !strings.Contains(resp.Warnings[0], "colour") {
		t.Errorf("token?colour=other: %v %v, want a warning about colour", resp, err)
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

// TestReadsPauseOnAReadOnlyNode: a node that has found that it may not write does
// not try again at each read of a due token.
func TestReadsPauseOnAReadOnlyNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
		time.Sleep(19 * time.Hour)
		calls := e.view.calls.Load()
		for range 1000 {
			e.token("token")
			synctest.Wait()
		}
		if n := e.view.calls.Load() - calls; n > 10 {
			t.Errorf("%d calls into Vault for 1000 reads", n)
		}
	})
}

// TestWarningIsInUTC has a server in another zone.
func TestWarningIsInUTC(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.opts.now = func() time.Time { return time.Now().In(time.FixedZone("", 7200)) }
		e.restart()
		e.configure("default")
		e.sim.SetFault(retryAfter(503, "3600"))
		time.Sleep(18*time.Hour + time.Second)
		want := []string{"this token could not be replaced and is served until 2000-01-01T23:59:30Z: " +
			"Autopay answered 503 Service Unavailable: temporarily_unavailable: simulated fault; the next attempt is at 2000-01-01T19:00:00Z"}
		if resp, err := e.read("token"); err != nil || !slices.Equal(resp.Warnings, want) {
			t.Errorf("got %v %v, want %v", resp, err, want)
		}
	})
}

// Another node has damaged the config while a reader waits for its first token.
func TestConfigIsDamagedUnderAReader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false)
		_, _ = e.read("status")
		e.storage.slow("put", time.Second)
		c := e.credential("default")
		c.lock <- struct{}{} // a job of another request
		go func() {
			time.Sleep(time.Second)
			_ = e.storage.InmemStorage.Put(t.Context(), &logical.StorageEntry{Key: "config/default", Value: []byte("x")})
			e.InvalidateKey(t.Context(), "config/default")
			<-c.lock
		}()
		resp, err := e.read("token")
		if got := code(resp, err); got != 500 {
			t.Errorf("%d %s, want a 500 that says what is damaged", got, say(resp, err))
		}
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
