package main

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// Sequences of events that are rare, and easily go wrong.

func TestRotateThatBringsTheSameTokenIsNotRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
		for range 110 {
			resp, err := e.write("rotate", nil)
			if err != nil || len(resp.Warnings) != 1 {
				t.Fatal(resp, err)
			}
		}
		e.wantRequests(2)
	})
}

func TestLoadGoesOnAfterACredentialThatCantBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("aaa")
		e.configure("bbb")
		e.clean(t.Context())
		e.storage.failOn("get", "config/aaa", errors.New("cipher: message authentication failed"))
		e.start()
		time.Sleep(18*time.Hour + time.Minute)
		for range 10 {
			time.Sleep(time.Minute)
			e.tick()
			synctest.Wait()
		}
		e.wantRequests(3)
		if n := strings.Count(e.logs.String(), "can't be loaded"); n != 1 {
			t.Errorf("%d log lines, want one", n)
		}
	})
}

func TestTTLIsNotBeyondTheScheduleAtTheLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{Lifetime: time.Hour})
		e.configure("default", "token_request_limit", 1)
		time.Sleep(44 * time.Minute)
		d := e.token("token")
		if d["ttl"].(int64) > 60 {
			t.Errorf("ttl %v with the token due in 60 s", d["ttl"])
		}
	})
}

func TestAProofCountsThoughTheConfigCantBeStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false)
		puts := 0
		e.storage.failWith(func(op, _ string) error {
			if op == "put" {
				if puts++; puts > 1 {
					return errors.New("disk full")
				}
			}
			return nil
		})
		e.token("token") // unsaved
		e.storage.failOn("put", "config/", errors.New("disk full"))
		e.sim.SetClient("second", testSecret)
		for range 5 {
			if _, err := e.write("config", map[string]any{"client_id": "second"}); err == nil {
				t.Fatal("the config was stored")
			}
		}
		e.storage.failWith(nil)
		e.tick()
		synctest.Wait()
		if e.sim.Requests("") != e.status("status")["token_requests_24h"] {
			t.Errorf("%d requests, %v in the ledger", e.sim.Requests(""), e.status("status")["token_requests_24h"])
		}
	})
}

func TestAHalfDoneDeleteCanBeRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		e.storage.failOn("delete", "token/", errors.New("disk full"))
		_, err := e.do(t.Context(), logical.DeleteOperation, "config", nil)
		if err == nil {
			t.Error("no error")
		}
		e.storage.failWith(nil)
		_, err = e.do(t.Context(), logical.DeleteOperation, "config", nil)
		got, _ := e.storage.Get(t.Context(), "token/default")
		if err != nil || got != nil {
			t.Error("token stays in storage after a 204", err)
		}
	})
}

func TestANodeThatTurnsStandbyForgetsWhatItCouldNotStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		active := newEngine(t, autopaysim.Options{})
		active.configure("default")
		node := &engine{t: t, storage: active.storage, sim: active.sim, view: &spyView{}, logs: active.logs, opts: active.opts}
		node.start()
		defer node.clean(t.Context())
		synctest.Wait()
		time.Sleep(2 * time.Minute)
		active.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second, Times: 1})
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = node.write("rotate", nil) })
		time.Sleep(time.Second)
		node.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
		active.storage.failOn("put", "", errors.New(logical.ErrReadOnly.Error()))
		wg.Wait()
		active.storage.failWith(nil)
		time.Sleep(2 * time.Minute)
		active.InvalidateKey(t.Context(), "token/default")
		if _, err := active.write("rotate", nil); err != nil {
			t.Fatal(err)
		}
		node.InvalidateKey(t.Context(), "token/default")
		if a, b := active.token("token"), node.token("token"); a["access_token"] != b["access_token"] {
			t.Error("standby serves another token than storage's", a["last_vault_rotation"], b["last_vault_rotation"])
		}
		node.view.state.Store(0)
		node.tick()
		synctest.Wait()
		active.InvalidateKey(t.Context(), "token/default")
		if used := active.status("status")["token_requests_24h"]; used != active.sim.Requests("") {
			t.Errorf("%v requests in the ledger, want %d", used, active.sim.Requests(""))
		}
	})
}

func TestRotateIsAnsweredWithWhatItObtained(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: time.Second, Times: 1})
		var wg sync.WaitGroup
		wg.Go(func() {
			resp, err := e.write("rotate", nil)
			if err != nil || resp.Data["last_vault_rotation"] != "2000-01-01T00:02:00Z" {
				t.Error(resp, err)
			}
		})
		synctest.Wait()
		wg.Go(func() { _, _ = e.write("config", map[string]any{"audience": "x", "verify": false}) })
		wg.Wait()
	})
}

func TestAutopaysWordsAreNotVaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default", "verify", false)
		e.sim.SetFault(autopaysim.Fault{Kind: "status", Status: 403, Body: `{"error":"x","error_description":"` + logical.ErrReadOnly.Error() + `"}`})
		_, err := e.read("token")
		if code(nil, err) != http.StatusBadGateway {
			t.Errorf("got %v, want a 502", err)
		}
	})
}

func TestStorageThatCantBeReadIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		synctest.Wait() // loading is over
		e.InvalidateKey(t.Context(), "token/default")
		e.storage.failWith(func(string, string) error { return errors.New("no quorum") })
		r := e.storage.reads.Load()
		for range 1000 {
			e.token("token")
		}
		if n, reads := strings.Count(e.logs.String(), "can't be read"), e.storage.reads.Load()-r; n != 1 || reads != 1 {
			t.Errorf("%d log lines and %d reads of storage, want one of each", n, reads)
		}
	})
}

func TestReadersGoOnWhenSettingsChangeUnderThem(t *testing.T) {
	t.Parallel()
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			e.sim.SetClient("second", testSecret)
			e.configure("default", "verify", false)
			e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: time.Second, Times: 1})
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { e.token("token") })
			}
			synctest.Wait()
			wg.Go(func() { _, _ = e.write("config", map[string]any{"client_id": "second", "verify": false}) })
			wg.Wait()
		})
	}
}

// Vault's clients repeat a write that was answered with a 5xx.
func TestAFailedProofIsNotRepeatedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503})
		for range 3 {
			if _, err := e.write("config", map[string]any{"client_secret": "x"}); code(nil, err) != http.StatusServiceUnavailable {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		e.wantRequests(2)
		e.sim.SetFault(autopaysim.Fault{})
		if resp, err := e.write("config", map[string]any{"client_id": "unknown"}); code(resp, err) != http.StatusBadRequest { // other settings
			t.Fatal(resp, err)
		}
		time.Sleep(verifySpacing)
		e.sim.SetClient(testID, "x")
		if resp, err := e.write("config", map[string]any{"client_secret": "x"}); err != nil || resp.IsError() {
			t.Fatal(resp, err)
		}
	})
}

func TestNameInTheBodyIsRefused(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	e.configure("default")
	e.wantUnchanged(func() {
		resp, err := e.write("config", map[string]any{"name": "oslo", "rotation_period": 3600})
		if code(resp, err) != http.StatusBadRequest || !strings.Contains(say(resp, err), "write to config/NAME on this mount") {
			t.Errorf("got %v %v", resp, err)
		}
	})
}

func TestTheSameTokenWithNewLife(t *testing.T) {
	t.Parallel()
	answer := tokenAnswer{accessToken: "t", lifetime: time.Hour}
	now := start2000
	entry := tokenEntry{}.withToken("g", answer, now, now)
	now = now.Add(10 * time.Hour)
	s := newSnapshot(&configEntry{Generation: "g"}, entry.withToken("g", answer, now, now), now)
	if want := now.Add(30 * time.Minute); !s.live(now) || !s.dueAt().Equal(want) {
		t.Errorf("live %v, due at %s, want %s", s.live(now), s.dueAt(), want)
	}
}
