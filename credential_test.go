package main

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

func TestStorageThatCantBeReadIsLeftAlone(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
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
