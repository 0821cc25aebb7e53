//go:build acceptance

package acceptance

import (
	"net/http"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// TestRefreshWithoutReaders leaves a credential alone until its token is due:
// at that second there is a new one, and one read finds it.
func TestRefreshWithoutReaders(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	p.SetLifetime(20 * time.Second)
	m.mustWrite(t, "config", cred.config("rotation_period", 6))
	old := m.token(t, "")
	if old.RotationPeriod != 6 || old.TTL > 6 || old.TTL < 5 {
		t.Errorf("rotation_period %d, ttl %d, want 6 and at most that", old.RotationPeriod, old.TTL)
	}

	eventually(t, 8*time.Second, "no refresh", func() bool { return p.Issued(cred.id) == 2 })
	due := timestamp(t, old.LastVaultRotation).Add(6 * time.Second)
	if early := time.Until(due); early > time.Second {
		t.Errorf("refreshed %v early", early)
	}
	// The new token is served as soon as it is stored.
	var now bearer
	eventually(t, time.Second, "the old token is still served", func() bool {
		now = m.token(t, "")
		return now.AccessToken != old.AccessToken
	})
	if now.LastVaultRotation <= old.LastVaultRotation || now.ExpireTime <= old.ExpireTime || !p.accepts(t, now.AccessToken) {
		t.Errorf("now %+v, was %+v", now, old)
	}
	if !p.Valid(old.AccessToken) {
		t.Error("the old token had died when the new one came")
	}
}

// TestReadersNeverWait lets a refresh hang: every read meanwhile is answered
// at once with the live token.
func TestReadersNeverWait(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	p.SetLifetime(60 * time.Second)
	m.mustWrite(t, "config", cred.config("rotation_period", 5))
	want := m.token(t, "").AccessToken

	p.SetFault(autopaysim.Fault{Kind: autopaysim.FaultDelay, Delay: 3 * time.Second})
	eventually(t, 8*time.Second, "no refresh begins", func() bool { return p.Requests(cred.id) == 2 })
	began := time.Now()
	var slowest time.Duration
	for reads := 0; time.Since(began) < 2*time.Second; reads++ {
		sent := time.Now()
		b := m.token(t, "")
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
	eventually(t, 5*time.Second, "the new token is not served", func() bool { return m.token(t, "").AccessToken != want })
	p.asked(t, cred, 2)
}

// TestOutage takes the provider away under a live token: it is served with a
// warning for as long as it lives, then readers get a 503; and the credential
// heals when the provider does.
func TestOutage(t *testing.T) {
	t.Parallel()
	m, p, cred := setup(t)
	p.SetLifetime(14 * time.Second)
	m.mustWrite(t, "config", cred.config("rotation_period", 5))
	old := m.token(t, "")
	p.SetFault(down)

	eventually(t, 8*time.Second, "no warning of a failed refresh", func() bool { return m.read(t, "token").warnings() != "" })
	a := m.read(t, "status")
	if a.data["state"] != "degraded" || integer(t, a.data, "consecutive_failures") < 1 {
		t.Errorf("status %v, want degraded", a)
	}
	timestamp(t, a.data["last_error_time"])
	timestamp(t, a.data["next_attempt"])

	eventually(t, 14*time.Second, "the token is served beyond its life", func() bool {
		a := m.read(t, "token")
		if a.status == http.StatusServiceUnavailable {
			return true
		}
		b, err := parseBearer(a)
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
	if left := time.Until(timestamp(t, old.ExpireTime)); left > 1500*time.Millisecond {
		t.Errorf("a token that lives for %v more is no longer served", left)
	}
	if state := m.read(t, "status").data["state"]; state != "failing" {
		t.Errorf("state %v, want failing", state)
	}
	p.atMostOneASecond(t, cred)

	// It heals without a reader.
	p.SetFault(autopaysim.Fault{})
	eventually(t, 15*time.Second, "no attempt after the outage", func() bool { return p.Issued(cred.id) == 2 })
	eventually(t, time.Second, "the new token is not served", func() bool { return m.read(t, "token").status == http.StatusOK })
	b := m.token(t, "")
	if b.AccessToken == old.AccessToken || !p.accepts(t, b.AccessToken) {
		t.Errorf("after the outage: %+v", b)
	}
	if a := m.read(t, "token"); a.warnings() != "" {
		t.Errorf("a warning after the outage: %s", a.warnings())
	}
}
