//go:build acceptance

package harness

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"testing"
	"time"
)

// StartWithin is ample time for a server to start on two busy cores; 3 s is
// usual.
const StartWithin = time.Minute

// Poll calls try until it returns nil. After the time given it returns the last
// error of try.
func Poll(within time.Duration, try func() error) error {
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-deadline:
			return fmt.Errorf("not within %v: %w", within, err)
		case <-tick.C:
		}
	}
}

// Eventually fails the test when cond does not become true in time. The failure
// says what is wrong.
func Eventually(tb testing.TB, within time.Duration, wrong string, cond func() bool) {
	tb.Helper()
	err := Poll(within, func() error {
		if cond() {
			return nil
		}
		return errors.New(wrong)
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// Random returns n random bytes in hex, which no encoding spells differently.
func Random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
