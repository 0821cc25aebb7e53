//go:build acceptance

package engine

import (
	"net/http"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestRefreshWithoutReaders does not read a credential until its token is due. The
// token is replaced at that second, and one read finds the new one.
func TestRefreshWithoutReaders(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	p.SetLifetime(20 * time.Second)
	m.MustWrite(t, "config", cred.Config("rotation_period", 6))
	old := m.Token(t, "")
	if old.RotationPeriod != 6 || old.TTL > 6 || old.TTL < 5 {
		t.Errorf("rotation_period %d, ttl %d, want 6 and at most that", old.RotationPeriod, old.TTL)
	}

	harness.Eventually(t, 8*time.Second, "no refresh", func() bool { return p.Issued(cred.ID) == 2 })
	due := harness.Timestamp(t, old.LastVaultRotation).Add(6 * time.Second)
	if early := time.Until(due); early > time.Second {
		t.Errorf("refreshed %v early", early)
	}
	// The new token is served as soon as it is stored.
	var now harness.Token
	harness.Eventually(t, time.Second, "the old token is still served", func() bool {
		now = m.Token(t, "")
		return now.AccessToken != old.AccessToken
	})
	newer := now.LastVaultRotation > old.LastVaultRotation && now.ExpireTime > old.ExpireTime
	if !newer || !p.Accepts(t, now.AccessToken) {
		t.Errorf("now %+v, was %+v", now, old)
	}
	if !p.Valid(old.AccessToken) {
		t.Error("the old token had died when the new one came")
	}
}

// TestReadersNeverWait makes a refresh slow. Every read during it is answered at
// once with the live token.
func TestReadersNeverWait(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	p.SetLifetime(60 * time.Second)
	m.MustWrite(t, "config", cred.Config("rotation_period", 5))
	want := m.Token(t, "").AccessToken

	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second})
	harness.Eventually(t, 8*time.Second, "no refresh begins", func() bool { return p.Requests(cred.ID) == 2 })
	began := time.Now()
	var slowest time.Duration
	for reads := 0; time.Since(began) < 2*time.Second; reads++ {
		sent := time.Now()
		b := m.Token(t, "")
		slowest = max(slowest, time.Since(sent))
		if b.AccessToken != want {
			t.Fatal("another token before the refresh is answered")
		}
		if b.TTL < 5 {
			t.Fatalf("ttl %d, want at least 5", b.TTL)
		}
	}
	if slowest > time.Second {
		t.Errorf("a read took %v while a refresh of 3 s was under way", slowest)
	}
	harness.Eventually(t, 5*time.Second, "the new token is not served", func() bool {
		return m.Token(t, "").AccessToken != want
	})
	p.WantRequests(t, cred, 2)
}

// TestOutage takes Autopay down while there is a live token. The token is served
// with a warning as long as it lives; then readers get a 503. When Autopay is back
// the credential recovers.
func TestOutage(t *testing.T) {
	t.Parallel()
	m, p, cred := harness.Setup(t)
	p.SetLifetime(14 * time.Second)
	m.MustWrite(t, "config", cred.Config("rotation_period", 5))
	old := m.Token(t, "")
	p.SetFault(harness.Down)

	harness.Eventually(t, 8*time.Second, "no warning of a failed refresh", func() bool {
		return m.Read(t, "token").Warnings() != ""
	})
	a := m.Read(t, "status")
	if a.Data["state"] != "degraded" || harness.Integer(t, a.Data, "consecutive_failures") < 1 {
		t.Errorf("status %v, want degraded", a)
	}
	harness.Timestamp(t, a.Data["last_error_time"])
	harness.Timestamp(t, a.Data["next_attempt"])

	harness.Eventually(t, 14*time.Second, "the token is served beyond its life", func() bool {
		a := m.Read(t, "token")
		if a.Status == http.StatusServiceUnavailable {
			return true
		}
		b, err := a.Token()
		if err != nil {
			t.Fatal(err)
		}
		if b.AccessToken != old.AccessToken || b.LastVaultRotation != old.LastVaultRotation || b.TTL < 5 || b.TTL > 60 {
			t.Errorf("served %+v", b)
		}
		if !p.Valid(b.AccessToken) {
			t.Fatal("a dead token was served")
		}
		return false
	})
	if left := time.Until(harness.Timestamp(t, old.ExpireTime)); left > 1500*time.Millisecond {
		t.Errorf("a token that lives for %v more is no longer served", left)
	}
	if state := m.Read(t, "status").Data["state"]; state != "failing" {
		t.Errorf("state %v, want failing", state)
	}
	atMostOneASecond(t, p, cred)

	// It recovers without a reader.
	p.SetFault(autopaysim.Fault{})
	harness.Eventually(t, 15*time.Second, "no attempt after the outage", func() bool { return p.Issued(cred.ID) == 2 })
	harness.Eventually(t, time.Second, "the new token is not served", func() bool {
		return m.Read(t, "token").Status == http.StatusOK
	})
	b := m.Token(t, "")
	if b.AccessToken == old.AccessToken || !p.Accepts(t, b.AccessToken) {
		t.Errorf("after the outage: %+v", b)
	}
	if a := m.Read(t, "token"); a.Warnings() != "" {
		t.Errorf("a warning after the outage: %s", a.Warnings())
	}
}
