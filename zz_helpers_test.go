package main

import (
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs a test in a synctest bubble: its time starts in 2000 and passes
// only while everything in it waits.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

// minute lets a minute pass, with Vault's periodic call at its end.
func (e *engine) minute() {
	e.t.Helper()
	time.Sleep(time.Minute)
	e.tick()
	synctest.Wait()
}
