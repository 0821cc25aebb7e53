package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// read is a reader, and what it may expect.
func (m *model) read(c *modelCredential) {
	m.stats.reads.Add(1)
	begun := time.Now()
	s := m.e.credential(c.name).snap.Load()
	had := s != nil && s.live(begun)
	resp, err := m.e.read("token/" + c.name)
	now := time.Now()
	if took := now.Sub(begun); had && took > 0 {
		m.t.Errorf("rule 1: a reader of a live token waited %s", took)
	}
	s = m.e.credential(c.name).snap.Load()
	well := !m.ill && !m.standby.holds(now) && !m.noDisk.holds(now)
	if err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		used := 0
		for _, at := range c.counted {
			if now.Sub(at) <= ledgerWindow+time.Second {
				used++
			}
		}
		switch {
		case had:
			m.t.Errorf("rule 1: a live token was not served: %v", err)
		case !well || s.entry.Failure != nil: // it may fail
		case s.limited(now) == nil:
			m.t.Errorf("rule 3: no token though nothing is wrong: %v", err)
		case !m.lossy && used < c.limit:
			m.t.Errorf("rule 8: limited with %d of %d requests used", used, c.limit)
		}
		return
	}
	token := resp.Data["access_token"].(string)
	if owner := m.owner(token); owner != c.id {
		m.t.Errorf("rules 4 and 7: a token of %q was served for %q", owner, c.id)
	}
	expire, _ := time.Parse(time.RFC3339, resp.Data["expire_time"].(string))
	lifetime := s.entry.lifetime()
	spare := expire.Sub(now) - min(30*time.Second, lifetime/20)
	if spare <= 0 {
		m.t.Errorf("rule 4: a token was served %s after its margin began", -spare)
	}
	if well && now.Sub(m.since) > time.Minute && s.problem(now) == nil && now.Sub(s.scheduled) > time.Second && m.e.credential(c.name).flight == nil {
		m.t.Errorf("rule 3: the token is %s overdue though nothing is wrong", now.Sub(s.scheduled))
	}
	if ttl := resp.Data["ttl"].(int64); ttl < 5 || ttl > max(5, resp.Data["rotation_period"].(int64)) || len(resp.Warnings) > 0 && ttl > 60 {
		m.t.Errorf("rule 5: ttl %d with warnings %v", ttl, resp.Warnings)
	}
	m.stats.mu.Lock()
	m.stats.life = min(m.stats.life, spare)
	m.stats.mu.Unlock()
}

// owner asks Autopay's protected resource whose token it is; "" if it is dead.
func (m *model) owner(token string) string {
	rec := httptest.NewRecorder()
	req := httptest.NewRequestWithContext(m.t.Context(), http.MethodGet, autopaysim.ResourcePath, nil)
	req.Header.Set("Authorization", "Bearer "+token)
	m.e.sim.ServeHTTP(rec, req)
	var said struct {
		ClientID string `json:"client_id"`
	}
	_ = json.Unmarshal(rec.Body.Bytes(), &said)
	return said.ClientID
}

// onRequest checks a request to Autopay, once it is answered.
func (m *model) onRequest(entry autopaysim.Entry) {
	if entry.Path != autopaysim.TokenPath {
		return
	}
	m.stats.requests.Add(1)
	c := m.byID[entry.ClientID]
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.standby.holds(entry.Time) {
		m.t.Errorf("rule 10: a standby asked Autopay")
	}
	if m.noDisk.holds(entry.Time) {
		m.t.Errorf("rule 8: a request left that was not stored in the ledger")
	}
	if n := m.e.sim.Stats().Clients[entry.ClientID].MaxInFlight; n > 1 {
		m.t.Errorf("rule 2: %d requests in flight", n)
	}
	if !c.failed.IsZero() && c.operator == "" {
		gap, least := entry.Time.Sub(c.failed), time.Second
		if c.refused {
			least = 5 * time.Minute
		}
		if gap < least {
			m.t.Errorf("rule 5: a request came %s after a failure, want at least %s", gap, least)
		}
		m.stats.mu.Lock()
		m.stats.gap = min(m.stats.gap, gap)
		m.stats.mu.Unlock()
	}
	if entry.Status/100 == 2 || entry.Status == 0 { // it may have cost a token
		used := 1
		for _, at := range c.counted {
			if entry.Time.Sub(at) < ledgerWindow {
				used++
			}
		}
		c.counted = append(c.counted, entry.Time)
		if used > c.limit {
			m.t.Errorf("rule 8: %d requests in 24 h, the limit is %d", used, c.limit)
		}
		m.stats.mu.Lock()
		m.stats.full = max(m.stats.full, float64(used)/float64(c.limit))
		m.stats.mu.Unlock()
	}
	switch good := entry.Status == http.StatusOK && (entry.Fault == "" || entry.Fault == "delay" || entry.Fault == "same_token"); {
	case good:
		c.failed = time.Time{}
	case entry.Status == 0 && entry.Fault != "close" && entry.Duration < defaultRequestTimeout*time.Second:
		// The process ended before the answer came: its successor may ask at once.
	case !strings.HasPrefix(c.operator, "config"): // a failed proof changes nothing
		c.failed, c.refused = time.Now(), entry.Status/100 == 4 && entry.Status != http.StatusTooManyRequests
	}
}

// TestThirtyQuietDays is the least that 30 days cost.
func TestThirtyQuietDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, autopaysim.Options{})
		e.configure("default")
		for range 30 * 24 * 60 {
			if _, err := e.do(t.Context(), logical.ReadOperation, "token", nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			e.tick()
		}
		t.Logf("%d requests in 30 days of 24 h tokens", e.sim.Requests(""))
		if got := e.sim.Requests(""); got > 41 {
			t.Errorf("want at most 41")
		}
	})
}
