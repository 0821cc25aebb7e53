package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// modelRuns is how many random lives TestModel runs. Each has a fixed seed of its own.
var modelRuns = flag.Int("model.runs", 10, "random runs of TestModel")

// model is one random life of a mount: 30 days of readers, operators, outages,
// refusals, restarts, times as a standby and failing storage. It checks the ten rules
// after every step and for every request that reaches Autopay.
type model struct {
	t       *testing.T
	rng     *rand.Rand
	e       *engine
	names   []*modelCredential
	byID    map[string]*modelCredential
	standby window // when this node may not write
	noDisk  window // when nothing can be stored
	ill     bool   // a fault is set at Autopay, or a secret is wrong
	since   time.Time
	patient bool // its outages are long
	lossy   bool // storage has failed in this run, so removals from the ledger may be lost
	stats   *modelStats
	mu      sync.Mutex // guards the credentials and the windows against onRequest
}

// window is a span of time that may be open.
type window struct{ from, to time.Time }

func (w window) holds(t time.Time) bool {
	return !w.from.IsZero() && t.After(w.from) && (w.to.IsZero() || t.Before(w.to))
}

// modelCredential is what the model knows of one name.
type modelCredential struct {
	name, id string // id: the client of the config in force
	limit    int
	counted  []time.Time // requests that may have cost a token
	failed   time.Time   // when the last attempt that no operator wanted failed; zero: it did not
	refused  bool        // as a refusal
	operator string      // path of the operator's write under way
}

// modelStats are the totals and the tightest margins over all runs.
type modelStats struct {
	steps, reads, requests, restarts, writes atomic.Int64
	mu                                       sync.Mutex
	life                                     time.Duration // least life left in a token served, beyond the margin
	gap                                      time.Duration // shortest wait after a failure
	full                                     float64       // fullest ledger, used / limit
}

func TestModel(t *testing.T) {
	t.Parallel()
	stats := &modelStats{life: time.Hour, gap: time.Hour}
	t.Run("runs", func(t *testing.T) {
		for seed := range *modelRuns {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				bubble(t, func(t *testing.T) { live(t, uint64(seed), stats) })
			})
		}
	})
	t.Logf("%d runs of 30 days, %d steps, %d reads, %d requests to Autopay, %d restarts, %d operators' writes",
		*modelRuns, stats.steps.Load(), stats.reads.Load(), stats.requests.Load(), stats.restarts.Load(), stats.writes.Load())
	t.Logf("tightest: %s of life left beyond the margin, %s between a failure and the next request, %.0f %% of a ledger used",
		stats.life, stats.gap, 100*stats.full)
}

func live(t *testing.T, seed uint64, stats *modelStats) {
	t.Helper()
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 4711)), stats: stats, byID: map[string]*modelCredential{}}
	m.patient = seed%8 == 0
	clients := map[string]string{}
	for i := range 3 {
		c := &modelCredential{name: fmt.Sprintf("n%d", i)}
		for _, id := range []string{"a", "b"} {
			clients[c.name+id] = testSecret
			m.byID[c.name+id] = c
		}
		m.names = append(m.names, c)
	}
	m.e = newEngine(t, autopaysim.Options{Clients: clients, Lifetime: m.lifetime(), OnRequest: m.onRequest})
	for _, c := range m.names {
		c.limit = 1 + m.rng.IntN(16)
		c.id = c.name + "a"
		m.e.configure(c.name, "client_id", c.id, "verify", false, "token_request_limit", c.limit)
	}
	m.since = time.Now()
	for time.Since(start2000) < 30*24*time.Hour && !t.Failed() {
		m.stats.steps.Add(1)
		m.step(m.names[m.rng.IntN(len(m.names))])
		synctest.Wait()
		time.Sleep(m.pause())
		m.read(m.names[m.rng.IntN(len(m.names))])
	}
}

// lifetime is a minute to 30 days, short ones as likely as long ones.
func (m *model) lifetime() time.Duration {
	return time.Minute << m.rng.IntN(16) * time.Duration(100+m.rng.IntN(32)) / 100
}

// pause is milliseconds to a day and a half. In an outage it is minutes at most, except
// in every eighth run.
func (m *model) pause() time.Duration {
	longest := 28
	if m.ill && !m.patient {
		longest = 18
	}
	return time.Duration(m.rng.Int64N(int64(time.Millisecond) << (4 + m.rng.IntN(longest-4))))
}

// step does one thing that can happen to a mount.
func (m *model) step(c *modelCredential) {
	now := time.Now()
	switch dice := m.rng.IntN(100); {
	case dice < 20:
		m.e.tick()
	case dice < 40:
		m.heal()
	case dice < 55:
		kinds := []autopaysim.Fault{
			{Kind: "status", Status: 503},
			{Kind: "status", Status: 429},
			{Kind: "status", Status: 401},
			{Kind: "hang"},
			{Kind: "refused"},
			{Kind: "close"},
			{Kind: "malformed"},
			{Kind: "same_token"},
			{Kind: "delay", Delay: time.Duration(m.rng.IntN(12)) * time.Second},
		}
		m.ill = true
		m.e.sim.SetFault(kinds[m.rng.IntN(len(kinds))])
	case dice < 60:
		m.e.sim.SetLifetime(m.lifetime())
	case dice < 66:
		m.restart()
	case dice < 70 && !m.standby.holds(now.Add(1)):
		m.open(&m.standby, now)
		m.e.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
	case dice < 73 && !m.noDisk.holds(now.Add(1)):
		m.lossy = true
		m.open(&m.noDisk, now)
		m.e.storage.failWith(func(op, _ string) error {
			if op == "put" || op == "delete" {
				return errors.New("disk full")
			}
			return nil
		})
	case dice < 85:
		m.operate(c, "rotate/"+c.name, nil)
	default:
		next := c.name + []string{"a", "b"}[m.rng.IntN(2)]
		limit := 1 + m.rng.IntN(16)
		data := map[string]any{
			"client_id": next, "token_request_limit": limit, "verify": m.rng.IntN(2) == 0,
		}
		if schedules := []any{"* * * * *", "*/10 * * * *", "0 3,15 * * *", "CRON_TZ=Europe/Oslo 30 2,14 * * mon-fri"}; m.rng.IntN(2) == 0 {
			data["rotation_schedule"] = schedules[m.rng.IntN(len(schedules))]
		} else {
			data["rotation_period"] = []any{0, 5, "10m", "9h"}[m.rng.IntN(4)]
		}
		m.mu.Lock()
		before := c.limit
		c.limit = max(limit, before) // while it is under way either may be in force
		m.mu.Unlock()
		ok := m.operate(c, "config/"+c.name, data)
		m.mu.Lock()
		if c.limit = before; ok {
			if c.limit = limit; c.id != next {
				c.id, c.failed = next, time.Time{}
			}
		}
		m.mu.Unlock()
	}
}

func (m *model) open(w *window, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*w = window{from: now}
}

// operate is an operator's write; it reports whether it was taken.
func (m *model) operate(c *modelCredential, path string, data map[string]any) bool {
	m.mu.Lock()
	c.operator = path
	m.mu.Unlock()
	resp, err := m.e.write(path, data)
	m.stats.writes.Add(1)
	m.mu.Lock()
	c.operator = ""
	m.mu.Unlock()
	return err == nil && !resp.IsError()
}

// heal ends all faults, with the tick that notices it.
func (m *model) heal() {
	now := time.Now()
	m.e.sim.SetFault(autopaysim.Fault{})
	m.e.storage.failWith(nil)
	m.e.view.state.Store(0)
	m.mu.Lock()
	for _, w := range []*window{&m.standby, &m.noDisk} {
		if w.to.IsZero() {
			w.to = now
		}
	}
	m.mu.Unlock()
	m.ill, m.since = false, now
	m.e.tick()
}

// restart ends the process and starts another, which must serve the same tokens (rule 6).
func (m *model) restart() {
	m.stats.restarts.Add(1)
	synctest.Wait()
	now := time.Now()
	keep := map[string]string{}
	for _, c := range m.names {
		s := m.e.credential(c.name).snap.Load()
		if s != nil && s.live(now) && !s.due(now) && !s.unsaved && s.entry.Failure == nil {
			keep[c.name] = s.entry.AccessToken
		}
		if s == nil || s.unsaved { // a failure that was not stored is forgotten
			m.mu.Lock()
			c.failed = time.Time{}
			m.mu.Unlock()
		}
	}
	m.e.restart()
	for name, token := range keep {
		if resp, err := m.e.read("token/" + name); err != nil || resp.Data["access_token"] != token {
			m.t.Errorf("rule 6: another token after a restart: %v %v", resp, err)
		}
	}
}

// read reads a token and checks the rules that a reader relies on.
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
		m.t.Errorf("rule 8: a request was sent that was not stored in the ledger")
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
		// The process ended before the answer came, so its successor may ask at once.
	case !strings.HasPrefix(c.operator, "config"): // a failed verification changes nothing
		c.failed, c.refused = time.Now(), entry.Status/100 == 4 && entry.Status != http.StatusTooManyRequests
	}
}
