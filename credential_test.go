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

// TestCredential is about readers, jobs and changes in storage that meet.
func TestCredential(t *testing.T) {
	noQuorum := errors.New("no quorum")
	scenes(t, map[string]func(e *engine){
		"storage that fails is left alone": func(e *engine) {
			synctest.Wait() // loading is over
			e.InvalidateKey(e.t.Context(), "token/default")
			e.storage.failOn("", "", noQuorum)
			r := e.storage.reads.Load()
			for range 1000 {
				e.token("token")
			}
			n, reads := strings.Count(e.logs.String(), "can't be read"), e.storage.reads.Load()-r
			if n != 1 || reads != 1 {
				e.t.Errorf("%d log lines and %d reads of storage, want one of each", n, reads)
			}
		},
		"readers do not wait for storage that hangs": func(e *engine) {
			e.InvalidateKey(e.t.Context(), "token/default")
			e.storage.slow("get", time.Minute)
			for _, most := range []time.Duration{storageTimeout, 0} {
				begun := time.Now()
				var wg sync.WaitGroup
				for range 5 {
					wg.Go(func() { e.token("token") })
				}
				wg.Wait()
				wantWithin(e.t, begun, most)
			}
		},
		"a reader's deadline is not a failure of storage": func(e *engine) {
			e.edit(`"request_timeout":10`, `"request_timeout":11`)
			e.storage.slow("get", 10*time.Millisecond)
			ctx, cancel := context.WithTimeout(e.t.Context(), time.Millisecond)
			defer cancel()
			_, _ = e.do(ctx, logical.ReadOperation, "token", nil)
			if strings.Contains(e.logs.String(), "storage can't be read") {
				e.t.Errorf("storage is left alone: %s", e.logs)
			}
			e.want("config", "request_timeout", int64(11))
		},
		// A job goes on after its caller's deadline; one that waits for its turn does not begin.
		"operators who leave are answered": func(e *engine) {
			old := e.token("token")["access_token"]
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(delay(4 * time.Second))
			ctx, cancel := context.WithTimeout(e.t.Context(), time.Second)
			defer cancel()
			begun, late := time.Now(), e.wantCode(http.StatusServiceUnavailable)
			var wg sync.WaitGroup
			wg.Go(func() { late(e.do(ctx, logical.UpdateOperation, "rotate", nil)) })
			synctest.Wait()
			wg.Go(func() { late(e.do(ctx, logical.UpdateOperation, "config", fields{"rotation_period": 3600})) })
			wg.Wait()
			wantWithin(e.t, begun, time.Second)
			time.Sleep(10 * time.Second)
			e.want("token", "rotation_period", int64(64800))
			if e.token("token")["access_token"] == old {
				e.t.Error("the rotation was cancelled")
			}
			e.wantRequests(2)
		},
		"another node changes the settings during a refresh": func(e *engine) {
			e.sim.SetFault(once(delay(5 * time.Second)))
			time.Sleep(18*time.Hour + time.Second) // the refresh is under way
			e.edit(`"request_timeout":10`, `"request_timeout":20`)
			time.Sleep(10 * time.Second)
			e.wantRequests(2)
			e.want("config", "request_timeout", int64(20))
		},
		"storage fails and recovers while the token in memory comes to its end": func(e *engine) {
			standby := e.peer(consts.ReplicationPerformanceStandby)
			old := standby.token("token")["access_token"]
			time.Sleep(24*time.Hour - 30*time.Second - time.Millisecond) // the active node has another one
			standby.InvalidateKey(e.t.Context(), "token/default")
			e.storage.failOn("get", "", noQuorum)
			standby.want("token", "access_token", old)
			time.Sleep(time.Millisecond)
			e.wantCode(http.StatusInternalServerError, "no quorum")(standby.read("token"))
			e.storage.heal()
			if standby.token("token")["access_token"] == old {
				e.t.Error("a token is served within its margin")
			}
		},
		// A write that comes meanwhile is not made from what is in memory.
		"another node changes the secret, which this one can't read": func(e *engine) {
			e.edit(testSecret, "newer-secret")
			e.storage.failOn("get", "", noQuorum)
			e.token("token")
			e.wantCode(http.StatusInternalServerError)(e.write("config", fields{"rotation_period": 600}))
			e.storage.heal()
			e.ok(e.write("config", fields{"rotation_period": 600}))
			stored := e.stored("config/default")
			if !strings.Contains(stored, "newer-secret") || !strings.Contains(stored, `"rotation_period":600`) {
				e.t.Error("the secret that another node has written is lost")
			}
		},
		"a reader who reads storage does not undo what a job has obtained meanwhile": func(e *engine) {
			time.Sleep(2 * time.Minute)
			e.sim.SetFault(once(delay(5 * time.Second)))
			go func() { _, _ = e.write("rotate", nil) }()
			time.Sleep(5*time.Second - storageTimeout/2)
			e.storage.set(func(_ context.Context, op, _ string, do func() error) error {
				if op == "put" {
					return errors.New("disk full") // so the token is in memory only
				}
				defer time.Sleep(storageTimeout * 2 / 5) // of each of two gets
				return do()
			})
			e.InvalidateKey(e.t.Context(), "token/default")
			e.token("token")
			e.want("token", "last_vault_rotation", "2000-01-01T00:02:00Z")
		},
		"a rotate and a read wait behind a delete": func(e *engine) {
			e.sim.SetClient("second", testSecret)
			e.configure("default", "client_id", "second", "verify", false) // so that a read has to wait
			e.sim.SetFault(delay(5 * time.Second))
			var wg sync.WaitGroup
			for _, do := range []func(){
				func() { e.wantCode(http.StatusOK)(e.write("rotate", nil)) }, // holds the lock
				func() { e.wantCode(http.StatusNotFound)(e.delete("config")) },
				func() { e.wantCode(http.StatusBadRequest)(e.write("rotate", nil)) },
				func() { e.wantCode(http.StatusBadRequest)(e.read("token")) },
			} {
				wg.Go(do)
				synctest.Wait()
			}
			wg.Wait()
			e.wantRequests(2)
		},
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
			data fields
		}{
			{logical.UpdateOperation, "config", withSecret()},
			{logical.UpdateOperation, "config", fields{"rotation_period": 3600}},
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
		e.sim.SetFault(delay(5 * time.Second))
		state := new(logical.WALState)
		ctx, cancel := context.WithTimeout(logical.IndexStateContext(t.Context(), state), time.Second)
		defer cancel()
		e.wantCode(http.StatusServiceUnavailable)(e.do(ctx, logical.UpdateOperation, "rotate", nil))
		time.Sleep(10 * time.Second)
		if *state != (logical.WALState{}) {
			t.Errorf("the job wrote %+v for a caller who had left", state)
		}
	})
}

// TestChangesAreLoggedOnce: a line at the level that it deserves when something
// changes, and none of that level at each further attempt.
func TestChangesAreLoggedOnce(t *testing.T) {
	count := func(e *engine, want map[string]int) {
		e.t.Helper()
		for line, n := range want {
			if got := strings.Count(e.logs.String(), line); got != n {
				e.t.Errorf("%q is logged %d times, want %d", line, got, n)
			}
		}
	}
	scenes(t, map[string]func(e *engine){
		"an outage that lasts longer than the token": func(e *engine) {
			e.sim.SetFault(status(503))
			time.Sleep(25 * time.Hour)
			count(e, map[string]int{
				"[WARN]": 1, "[WARN]  the token could not be replaced": 1, "[ERROR]": 1, "[ERROR] no token to serve": 1,
			})
		},
		"an outage after which Autopay refuses the credential": func(e *engine) {
			e.sim.SetFault(status(503))
			time.Sleep(25 * time.Hour)
			e.sim.SetFault(status(401))
			time.Sleep(time.Hour)
			count(e, map[string]int{"[ERROR]": 2, "[ERROR] no token to serve": 2})
		},
		"storage that stays down": func(e *engine) {
			e.storage.failPuts(func(n int64) bool { return n > 1 }) // after the ledger
			time.Sleep(2 * time.Minute)
			e.ok(e.write("rotate", nil))
			for range 10 {
				e.minute()
			}
			count(e, map[string]int{"[WARN]": 0, "[ERROR]": 1, "[ERROR] the token entry can't be stored": 1})
		},
	})
}
