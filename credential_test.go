package main

import (
	"context"
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

func TestFailingStorageIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		synctest.Wait() // loading is over
		e.InvalidateKey(t.Context(), "token/default")
		e.storage.failOn("", "", errors.New("no quorum"))
		r := e.storage.reads.Load()
		for range 1000 {
			e.token("token")
		}
		if n, reads := strings.Count(e.logs.String(), "can't be read"), e.storage.reads.Load()-r; n != 1 || reads != 1 {
			t.Errorf("%d log lines and %d reads of storage, want one of each", n, reads)
		}
	})
}

// TestOperatorsWhoLeave get an answer at the end of their deadline. A job goes on after
// that; one that waits for its turn does not begin.
func TestOperatorsWhoLeave(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		old := e.token("token")["access_token"]
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 4 * time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { e.wantCode(http.StatusServiceUnavailable)(e.do(ctx, logical.UpdateOperation, "rotate", nil)) })
		synctest.Wait()
		wg.Go(func() {
			e.wantCode(http.StatusServiceUnavailable)(e.do(ctx, logical.UpdateOperation, "config", map[string]any{"rotation_period": 3600}))
		})
		wg.Wait()
		if took := time.Since(begun); took != time.Second {
			t.Errorf("answered after %s, want 1 s", took)
		}
		time.Sleep(10 * time.Second)
		if got := e.token("token"); got["access_token"] == old || got["rotation_period"] == int64(3600) {
			t.Errorf("the rotation was cancelled, or the write was done: %v", got)
		}
		e.wantRequests(2)
	})
}

// TestChangeDuringARefresh: another node changes the settings while this one waits
// for Autopay. The refresh does not hide the change.
func TestChangeDuringARefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second, Times: 1})
		time.Sleep(18*time.Hour + time.Second) // the refresh is under way
		e.put("config/default", strings.Replace(e.stored("config/default"), `"request_timeout":10`, `"request_timeout":20`, 1))
		e.InvalidateKey(t.Context(), "config/default")
		time.Sleep(10 * time.Second)
		e.wantRequests(2)
		e.want("config", "request_timeout", int64(20))
	})
}

// TestChangeDuringARead: the active node replaces the token right after a standby
// has read it from storage.
func TestChangeDuringARead(t *testing.T) {
	t.Parallel()
	for name, known := range map[string]bool{"of a known credential": true, "the first": false} {
		runInBubble(t, name, func(t *testing.T) {
			e := newEngine(t, autopaysim.Options{})
			standby := e.peer(consts.ReplicationPerformanceStandby)
			synctest.Wait() // loading is over
			e.configure("default")
			if known {
				standby.token("token")
			}
			standby.InvalidateKey(t.Context(), "token/default")
			var once sync.Once
			e.storage.after(func(op, key string) error {
				if op == "get" && key == "token/default" {
					once.Do(func() {
						time.Sleep(2 * time.Minute)
						e.configure("default", "rotation_period", 3600)
						if resp, err := e.write("rotate", nil); err != nil || len(resp.Warnings) > 0 {
							t.Error(resp, err)
						}
						standby.InvalidateKey(t.Context(), "config/default")
						standby.InvalidateKey(t.Context(), "token/default")
					})
				}
				return nil
			})
			standby.token("token")
			got, want := standby.token("token"), e.token("token")
			if got["access_token"] != want["access_token"] || got["rotation_period"] != want["rotation_period"] {
				t.Errorf("the standby serves %v, want %v", got, want)
			}
		})
	}
}

// TestStorageIsReadOnceTheTokenIsDead: storage fails and recovers while the token in
// memory comes to its end.
func TestStorageIsReadOnceTheTokenIsDead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		standby := e.peer(consts.ReplicationPerformanceStandby)
		old := standby.token("token")["access_token"]
		time.Sleep(24*time.Hour - 30*time.Second - time.Millisecond) // the active node has another one
		standby.InvalidateKey(t.Context(), "token/default")
		e.storage.failOn("get", "", errors.New("no quorum"))
		standby.want("token", "access_token", old)
		time.Sleep(time.Millisecond)
		if resp, err := standby.read("token"); !strings.Contains(say(resp, err), "no quorum") {
			t.Errorf("got %v %v, want the error of storage", resp, err)
		}
		e.storage.heal()
		if got := standby.token("token")["access_token"]; got == old {
			t.Error("a token is served within its margin")
		}
	})
}

// TestDeletedInTheMeantime: a rotate and a read wait behind a delete.
func TestDeletedInTheMeantime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t, "verify", false)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second})
		var wg sync.WaitGroup
		for _, do := range []func(){
			func() { e.wantCode(http.StatusOK)(e.write("rotate", nil)) }, // holds the slot
			func() { e.wantCode(http.StatusNotFound)(e.delete("config")) },
			func() { e.wantCode(http.StatusBadRequest)(e.write("rotate", nil)) },
			func() { e.wantCode(http.StatusBadRequest)(e.read("token")) },
		} {
			wg.Go(do)
			synctest.Wait()
		}
		wg.Wait()
		e.wantRequests(1)
	})
}

// TestWritesReturnTheirIndex: Vault Enterprise answers a write with X-Vault-Index,
// so that its client reads no older state from a performance standby.
func TestWritesReturnTheirIndex(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.storage.set(func(ctx context.Context, op, _ string, do func() error) error {
			if state := logical.IndexStateFromContext(ctx); state != nil && (op == "put" || op == "delete") {
				state.LocalIndex++ // as sdk/plugin/grpc_storage.go does
			}
			return do()
		})
		for _, write := range []struct {
			op   logical.Operation
			path string
			data map[string]any
		}{
			{logical.UpdateOperation, "config", map[string]any{"client_id": testID, "client_secret": testSecret}},
			{logical.UpdateOperation, "config", map[string]any{"rotation_period": 3600}},
			{logical.UpdateOperation, "rotate", nil},
			{logical.DeleteOperation, "config", nil},
		} {
			time.Sleep(2 * time.Minute)
			state := &logical.WALState{ClusterID: "cluster"}
			_, err := e.do(logical.IndexStateContext(t.Context(), state), write.op, write.path, write.data)
			if err != nil || state.LocalIndex == 0 || state.ClusterID != "cluster" {
				t.Errorf("%s %s: error %v, state %+v", write.op, write.path, err, state)
			}
		}
		// A caller who has left is not written to: its context is gone.
		e.configure("default")
		time.Sleep(2 * time.Minute)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 5 * time.Second})
		state := new(logical.WALState)
		ctx, cancel := context.WithTimeout(logical.IndexStateContext(t.Context(), state), time.Second)
		defer cancel()
		if _, err := e.do(ctx, logical.UpdateOperation, "rotate", nil); code(nil, err) != http.StatusServiceUnavailable {
			t.Errorf("got %v, want no answer in time", err)
		}
		time.Sleep(10 * time.Second)
		if *state != (logical.WALState{}) {
			t.Errorf("the job wrote %+v for a caller who had left", state)
		}
	})
}

// TestReadersDoNotWaitForHangingStorage: a live token is in memory, and storage is to
// be read again, but hangs.
func TestReadersDoNotWaitForHangingStorage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.InvalidateKey(t.Context(), "token/default")
		e.storage.slow("get", time.Minute)
		for _, most := range []time.Duration{storageTimeout, 0} {
			begun := time.Now()
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() { e.token("token") })
			}
			wg.Wait()
			wantWithin(t, begun, most)
		}
	})
}

// TestChangesAreLoggedOnce: a line at the level that it deserves when something
// changes, and none of that level at each further attempt.
func TestChangesAreLoggedOnce(t *testing.T) {
	t.Parallel()
	count := func(e *engine, want map[string]int) {
		e.t.Helper()
		for line, n := range want {
			if got := strings.Count(e.logs.String(), line); got != n {
				e.t.Errorf("%q is logged %d times, want %d", line, got, n)
			}
		}
	}
	runInBubble(t, "an outage that lasts longer than the token", func(t *testing.T) {
		e := configured(t)
		e.sim.SetFault(autopaysim.Fault{Kind: autopaysim.FaultStatus, Status: 503})
		time.Sleep(25 * time.Hour)
		count(e, map[string]int{"[WARN]": 1, "[ERROR]": 1, "[WARN]  the token could not be replaced": 1, "[ERROR] no token to serve": 1})
	})
	runInBubble(t, "storage that stays down", func(t *testing.T) {
		e := configured(t, "verify", false)
		e.storage.failPuts(func(n int64) bool { return n > 1 }) // after the ledger
		e.token("token")
		for range 10 {
			e.minute()
		}
		count(e, map[string]int{"[WARN]": 0, "[ERROR]": 1, "[ERROR] the token entry can't be stored": 1})
	})
}

// TestAReaderWhoLeavesMakesNothingStale: its deadline is not a failure of storage.
func TestAReaderWhoLeavesMakesNothingStale(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := configured(t)
		e.put("config/default", strings.Replace(e.stored("config/default"), `"request_timeout":10`, `"request_timeout":11`, 1))
		e.InvalidateKey(t.Context(), "config/default")
		e.storage.slow("get", 10*time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, _ = e.do(ctx, logical.ReadOperation, "token", nil)
		if strings.Contains(e.logs.String(), "storage can't be read") || e.status("config")["request_timeout"] != int64(11) {
			t.Errorf("storage is left alone: %s", e.logs)
		}
	})
}
