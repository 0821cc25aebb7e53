package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// modelRuns is how many random runs TestModel has. Each has a fixed seed of its own.
var modelRuns = flag.Int("model.runs", 3, "random runs of TestModel")

// model is one random run of a mount: 30 days of readers, operators, outages,
// refusals, restarts, times as a standby and failing storage, and in every third run
// of clocks that are set. It checks the ten rules after every step and for every
// request that reaches Autopay.
type model struct {
	*modelStats
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
	clock   *steppedClock
	clocks  clockFaults
	forgot  time.Time // when the clock was set last
	lossy   bool      // storage has failed in this run, so removals from the ledger may be lost
	story   story
	mu      sync.Mutex // guards the credentials and the windows against onRequest
}

// modelStats count what happened in all runs.
type modelStats struct{ steps, reads, requests, restarts, writes atomic.Int64 }

// clockFaults are what may happen to the wall clock in a run.
type clockFaults int

const (
	rightClock    clockFaults = iota
	steppedClocks             // it is set while the process runs, which is then not restarted
	wrongClocks               // and while the process is down, whose token may then be served for longer
)

// window is a span of time that may be open.
type window struct{ from, to time.Time }

func (w window) holds(t time.Time) bool {
	return !w.from.IsZero() && t.After(w.from) && (w.to.IsZero() || t.Before(w.to))
}

// modelCredential is what the model knows of one name.
type modelCredential struct {
	name, id string // id: the client of the config in force
	limit    int
	counted  []time.Time   // requests that may have cost a token
	failed   time.Time     // when the last attempt that no operator wanted failed; zero: it did not
	wait     time.Duration // the least that must follow it
	operator string        // path of the operator's write under way
	asked    time.Time     // when the last request came; zero: something has happened since that may cause another
	margin   bool          // that was answered with the same token, whose margin may begin at once
}

// story is what happened last in a run.
type story struct {
	mu    sync.Mutex
	lines []string
	last  string // without its time
	times int    // that it happened in a row
}

func (s *story) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := fmt.Sprintf(format, args...)
	at := fmt.Sprintf("%12s  ", time.Since(start2000).Round(time.Millisecond))
	if s.times++; line == s.last {
		s.lines[len(s.lines)-1] = fmt.Sprintf("%s%s, %d times", at, line, s.times)
		return
	}
	s.last, s.times = line, 1
	s.lines = append(s.lines, at+line)
	s.lines = s.lines[max(0, len(s.lines)-15):]
}

func TestModel(t *testing.T) {
	t.Parallel()
	stats := new(modelStats)
	t.Run("runs", func(t *testing.T) {
		for seed := range *modelRuns {
			runInBubble(t, fmt.Sprint(seed), func(t *testing.T) { live(t, uint64(seed), stats) })
		}
	})
	t.Logf("FIGURE: %d runs of 30 days, %d steps, %d reads, %d requests to Autopay, %d restarts, %d operators' writes",
		*modelRuns, stats.steps.Load(), stats.reads.Load(), stats.requests.Load(), stats.restarts.Load(), stats.writes.Load())
}

func live(t *testing.T, seed uint64, stats *modelStats) {
	t.Helper()
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 4711)), modelStats: stats, byID: map[string]*modelCredential{}}
	m.patient, m.clock = seed%8 == 0, new(steppedClock)
	if seed%3 == 1 {
		m.clocks = steppedClocks + clockFaults(seed%2)
	}
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
	m.e.opts.now = m.clock.now
	m.e.restart()
	for _, c := range m.names {
		c.limit = 1 + m.rng.IntN(16)
		c.id = c.name + "a"
		m.e.configure(c.name, "client_id", c.id, "verify", false, "token_request_limit", c.limit)
	}
	m.since = time.Now()
	for time.Since(start2000) < 30*24*time.Hour && !t.Failed() {
		m.steps.Add(1)
		m.step(m.names[m.rng.IntN(len(m.names))])
		synctest.Wait()
		time.Sleep(m.pause())
		m.read(m.names[m.rng.IntN(len(m.names))])
		synctest.Wait() // for what ends at the same moment
	}
	if t.Failed() {
		t.Logf("the end of this run (again: go test -run 'TestModel/runs/%d$' . -model.runs=%d):\n%s",
			seed, seed+1, strings.Join(m.story.lines, "\n"))
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
		m.story.tell("tick")
		m.e.tick()
	case dice < 40:
		m.heal()
	case dice < 55:
		kinds := []autopaysim.Fault{
			status(503), status(429), status(401), fault("hang"), fault("refused"), fault("close"), fault("malformed"),
			fault("html"), fault("oauth_error"), fault("lost"), fault("quoted"), fault("same_token"), fault("same_token"),
			delay(time.Duration(m.rng.IntN(12)) * time.Second),
		}
		m.fault(kinds[m.rng.IntN(len(kinds))])
	case dice < 60:
		lifetime := m.lifetime()
		m.story.tell("tokens now live for %s", lifetime)
		m.e.sim.SetLifetime(lifetime)
	case dice < 64 && m.clocks != rightClock:
		m.setClock()
	case dice < 66 && m.clocks != steppedClocks:
		m.restart()
	case dice < 70 && !m.standby.holds(now.Add(1)):
		m.open("standby", &m.standby, now)
		m.e.view.state.Store(uint32(consts.ReplicationPerformanceStandby))
	case dice < 73 && !m.noDisk.holds(now.Add(1)):
		m.lossy = true
		m.open("no storage", &m.noDisk, now)
		m.e.storage.failPuts(func(int64) bool { return true })
	case dice < 85:
		m.operate(c, "rotate/"+c.name, nil)
	default:
		next := c.name + []string{"a", "b"}[m.rng.IntN(2)]
		limit := 1 + m.rng.IntN(16)
		data := map[string]any{
			"client_id": next, "token_request_limit": limit, "verify": m.rng.IntN(2) == 0,
		}
		schedules := []any{"* * * * *", "*/10 * * * *", "0 3,15 * * *", "CRON_TZ=Europe/Oslo 30 2,14 * * mon-fri"}
		if m.rng.IntN(2) == 0 {
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

// fault sets a fault at Autopay.
func (m *model) fault(fault autopaysim.Fault) {
	m.story.tell("fault %s %d", fault.Kind, fault.Status)
	m.ill = true
	m.e.sim.SetFault(fault)
}

// setClock sets the wall clock: by minutes, by as much as a token lives, by a month, or right.
func (m *model) setClock() {
	by := []time.Duration{5 * time.Minute, 4 * time.Hour, 30 * 24 * time.Hour}[m.rng.IntN(3)]
	step := []time.Duration{0, by, -by}[m.rng.IntN(3)] * time.Duration(m.rng.IntN(1000)) / 1000
	m.story.tell("the clock is set to be %s ahead", step)
	m.clock.set(step)
	m.forget()
	if m.rng.IntN(2) == 0 { // whose times are those of another clock
		m.fault(autopaysim.Fault{Kind: autopaysim.FaultSameToken})
	}
	if m.clocks == wrongClocks && m.rng.IntN(4) > 0 {
		m.story.tell("restart")
		m.e.restart()
	}
}

// forget drops what the model knows by a clock that has been set.
func (m *model) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lossy, m.forgot = true, time.Now()
	for _, c := range m.names {
		c.counted, c.failed, c.asked = nil, time.Time{}, time.Time{}
	}
}

func (m *model) open(what string, w *window, now time.Time) {
	m.story.tell("%s", what)
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
	m.writes.Add(1)
	m.story.tell("write %s %v: %d %s", path, data, code(resp, err), say(resp, err))
	synctest.Wait() // for onRequest, which is called after a request was answered
	m.mu.Lock()
	c.operator, c.asked = "", time.Time{}
	m.mu.Unlock()
	return err == nil && !resp.IsError()
}

// heal ends all faults, with the tick that notices it.
func (m *model) heal() {
	now := time.Now()
	m.story.tell("all faults end")
	m.e.sim.SetFault(autopaysim.Fault{})
	m.e.storage.heal()
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
	m.restarts.Add(1)
	m.story.tell("restart")
	synctest.Wait()
	now := m.clock.now()
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
		m.mu.Lock()
		c.asked = time.Time{}
		m.mu.Unlock()
	}
	m.e.restart()
	for name, token := range keep {
		if m.clocks == wrongClocks {
			break // a stored token may be one from the future
		}
		if resp, err := m.e.read("token/" + name); err != nil || resp.Data["access_token"] != token {
			m.t.Errorf("rule 6: another token after a restart: %v %v", resp, err)
		}
	}
}

// read reads a token and checks the rules that a reader relies on.
func (m *model) read(c *modelCredential) {
	m.reads.Add(1)
	begun := time.Now()
	s := m.e.credential(c.name).snap.Load()
	had := s != nil && s.live(m.clock.now())
	resp, err := m.e.read("token/" + c.name)
	m.story.tell("read %s: %d %s", c.name, code(resp, err), say(resp, err))
	now := time.Now()
	if took := now.Sub(begun); had && took > 0 {
		m.t.Errorf("rule 1: a reader of a live token waited %s", took)
	}
	s, clock := m.e.credential(c.name).snap.Load(), m.clock.now()
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
		case s.limited(clock) == nil:
			m.t.Errorf("rule 3: no token though nothing is wrong: %v", err)
		case !m.lossy && used < c.limit:
			m.t.Errorf("rule 8: limited with %d of %d requests used", used, c.limit)
		}
		return
	}
	token := resp.Data["access_token"].(string)
	if owner := m.owner(token); owner != c.id && (owner != "" || m.clocks != wrongClocks) {
		m.t.Errorf("rules 4 and 7: a token of %q was served for %q", owner, c.id)
	}
	expire, _ := time.Parse(time.RFC3339, resp.Data["expire_time"].(string))
	lifetime := s.entry.lifetime()
	spare := expire.Sub(clock) - min(30*time.Second, lifetime/20)
	if spare <= 0 {
		m.t.Errorf("rule 4: a token was served %s after its margin began", -spare)
	}
	well = well && now.Sub(m.since) > time.Minute && s.problem(clock) == nil
	overdue := -timeLeft(clock, s.scheduled)
	if well && overdue > time.Second && m.e.credential(c.name).inFlight == nil {
		m.t.Errorf("rule 3: the token is %s overdue though nothing is wrong", overdue)
	}
	ttl, period := resp.Data["ttl"].(int64), resp.Data["rotation_period"].(int64)
	if ttl < 5 || ttl > max(5, period) || len(resp.Warnings) > 0 && ttl > 60 {
		m.t.Errorf("rule 5: ttl %d with warnings %v", ttl, resp.Warnings)
	}
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
	m.requests.Add(1)
	m.story.tell("request of %s: %d %s after %s", entry.ClientID, entry.Status, entry.Fault, entry.Duration)
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
	c.checkPace(m, entry.Time, entry.Fault == autopaysim.FaultSameToken)

	rule := ruleFor(entry.Status, entry.Fault == autopaysim.FaultOAuthError)
	withToken := []string{"", "delay", "same_token", "quoted"} // faults of answers that have one
	gotToken := entry.Status == http.StatusOK && slices.Contains(withToken, entry.Fault)
	gaveUp := entry.Status == 0 && entry.Fault != "close" && entry.Duration < defaultRequestTimeout*time.Second
	verifying := strings.HasPrefix(c.operator, "config")
	if gotToken || rule.counts {
		c.checkLimit(m, entry.Time)
	}
	switch {
	case gotToken:
		c.failed = time.Time{}
	case gaveUp: // the process ended before the answer came, so its successor may ask at once
		c.asked = time.Time{}
	case !verifying: // whose failure changes nothing
		c.failed, c.wait = time.Now(), rule.wait
	}
}

// checkPace checks that a request which no operator wanted comes no sooner after the
// one before it than it may. The caller holds m.mu.
func (c *modelCredential) checkPace(m *model, at time.Time, sameToken bool) {
	m.t.Helper()
	gap := at.Sub(c.asked)
	if gap < time.Second && !c.margin && c.operator == "" {
		m.t.Errorf("rule 2: two requests within %s", gap)
	}
	c.asked, c.margin = at, sameToken && gap >= time.Second
	if c.failed.IsZero() || c.operator != "" {
		return
	}
	if gap := at.Sub(c.failed); gap < c.wait {
		m.t.Errorf("rule 5: a request came %s after a failure, want at least %s", gap, c.wait)
	}
}

// checkLimit counts a request that may have cost a token. The caller holds m.mu.
func (c *modelCredential) checkLimit(m *model, at time.Time) {
	m.t.Helper()
	if at.Before(m.forgot) {
		return // entered by another clock
	}
	c.counted = append(c.counted, at)
	used := 0
	for _, t := range c.counted {
		if at.Sub(t) < ledgerWindow {
			used++
		}
	}
	if used > c.limit {
		m.t.Errorf("rule 8: %d requests in 24 h, the limit is %d", used, c.limit)
	}
}

// TestConcurrentLives lets readers, operators, Vault and other nodes act on a mount
// at the same time, while storage and Autopay are slow and fail. Once all is well
// again, memory must agree with storage, and every token must be fresh.
func TestConcurrentLives(t *testing.T) {
	t.Parallel()
	for _, secondary := range []bool{false, true} {
		for seed := range uint64(*modelRuns) {
			runInBubble(t, fmt.Sprintf("%d, secondary %v", seed, secondary), func(t *testing.T) {
				newConcurrentLife(t, seed, secondary).run()
			})
		}
	}
}

// concurrentLife is a mount in which much happens at once.
type concurrentLife struct {
	*engine
	rng      *rand.Rand
	operator *engine // where config is written: the primary, if this is a secondary
	names    []string
}

func newConcurrentLife(t *testing.T, seed uint64, secondary bool) *concurrentLife {
	t.Helper()
	l := &concurrentLife{rng: rand.New(rand.NewPCG(seed, 4711)), names: []string{"n0", "n1"}}
	l.operator = newEngine(t, autopaysim.Options{
		Clients: map[string]string{"a": testSecret, "b": testSecret}, Lifetime: 2 * time.Minute << l.rng.IntN(9),
	})
	l.engine = l.operator
	if secondary {
		l.engine = l.operator.peer(consts.ReplicationPerformanceSecondary, func(node *engine) {
			node.storage = &spyStorage{primary: l.operator.storage}
		})
	}
	return l
}

// disturb makes storage take random time and fail at random, before or after an
// operation has been done.
func (l *concurrentLife) disturb(slowest time.Duration, failing bool) {
	failure := errors.New("input/output error")
	l.storage.set(func(_ context.Context, _, _ string, do func() error) error {
		if slowest > 0 {
			time.Sleep(rand.N(slowest))
			defer time.Sleep(rand.N(slowest))
		}
		fails, done := failing && rand.N(3) == 0, rand.N(2) == 0
		if fails && !done {
			return failure
		}
		if err := do(); err != nil || !fails {
			return err
		}
		return failure
	})
}

func (l *concurrentLife) run() {
	for round := 0; round < 12 && !l.t.Failed(); round++ {
		l.disturb([]time.Duration{0, 50 * time.Millisecond, 2 * time.Second}[l.rng.IntN(3)], l.rng.IntN(4) == 0)
		faults := []autopaysim.Fault{
			{}, {}, status(503), status(401), delay(3 * time.Second), fault("hang"), fault("same_token"), fault("close"),
		}
		l.sim.SetFault(faults[l.rng.IntN(len(faults))])
		var wg sync.WaitGroup
		for range 3 + l.rng.IntN(20) {
			at, act := time.Duration(l.rng.Int64N(int64(30*time.Second))), l.act()
			wg.Go(func() {
				time.Sleep(at)
				act()
			})
		}
		wg.Wait()
		l.sim.SetFault(autopaysim.Fault{})
		l.storage.heal()
		for range 16 { // a refusal waits up to 15 minutes
			l.minute()
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		for _, name := range l.names {
			l.check(name)
		}
	}
	// The primary of a secondary asks too, for tokens of its own.
	if most := l.sim.Stats().MaxInFlight; l.operator == l.engine && most > len(l.names) {
		l.t.Errorf("rule 2: %d requests in flight for %d credentials", most, len(l.names))
	}
}

// act returns something that a reader, an operator, Vault or another node does.
func (l *concurrentLife) act() func() {
	name := l.names[l.rng.IntN(len(l.names))]
	write := func(data map[string]any) func() {
		lag := time.Duration(l.rng.Int64N(int64(3 * time.Second)))
		return func() {
			_, _ = l.operator.write("config/"+name, data)
			l.learn(configPrefix+name, lag)
		}
	}
	switch dice := l.rng.IntN(100); {
	case dice < 40:
		return func() { l.readToken(name) }
	case dice < 58:
		return write(map[string]any{
			"client_id": []string{"a", "b"}[dice%2], "client_secret": testSecret, "token_request_limit": 0,
			"verify": l.operator == l.engine && dice%4 < 2,
		})
	case dice < 66:
		return write(map[string]any{"rotation_period": 5 + dice})
	case dice < 74:
		return func() { _, _ = l.write("rotate/"+name, nil) }
	case dice < 80:
		lag := time.Duration(l.rng.Int64N(int64(3 * time.Second)))
		return func() {
			_, _ = l.operator.do(l.t.Context(), logical.DeleteOperation, "config/"+name, nil)
			l.learn(configPrefix+name, lag)
		}
	case dice < 90:
		key := []string{configPrefix, tokenPrefix}[dice%2] + name
		return func() { l.InvalidateKey(l.t.Context(), key) }
	default:
		return func() { l.watch() }
	}
}

// learn tells a secondary, some time later, that its primary has changed a key.
func (l *concurrentLife) learn(key string, lag time.Duration) {
	if l.operator != l.engine {
		time.Sleep(lag)
		l.InvalidateKey(l.t.Context(), key)
	}
}

func (l *concurrentLife) readToken(name string) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 5*time.Second)
	defer cancel()
	resp, err := l.do(ctx, logical.ReadOperation, "token/"+name, nil)
	if err == nil && resp != nil && !resp.IsError() && !l.sim.Valid(resp.Data["access_token"].(string)) {
		l.t.Error("rule 4: a dead token")
	}
}

// check compares what memory holds of a credential with storage, after all has
// been well for a while.
func (l *concurrentLife) check(name string) {
	l.t.Helper()
	stored, err := l.load(l.t.Context(), name, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	c := l.known(name)
	if c == nil {
		if stored.config != nil {
			l.t.Errorf("%s is configured and was never loaded", name)
		}
		return
	}
	s := c.snap.Load()
	if s == nil || s.changes != c.changes.Load() {
		if stored.config != nil {
			l.t.Errorf("%s is stale", name)
		}
		return
	}
	if (s.config == nil) != (stored.config == nil) || s.config != nil && *s.config != *stored.config {
		l.t.Errorf("rule 6: config of %s in memory %+v, in storage %+v", name, s.config, stored.config)
	}
	if s.config == nil {
		return
	}
	if memory, storage := asJSON(s.entry), asJSON(stored.entry); s.unsaved || memory != storage {
		l.t.Errorf("rule 6: token entry of %s in memory %s, in storage %s, unsaved %v", name, memory, storage, s.unsaved)
	}
	if now := l.now(); s.state(now) != stateOK {
		l.t.Errorf("rule 5: %s is %s, due at %s, now %s, failure %v", name, s.state(now), s.dueAt(), now, s.entry.Failure)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight != nil || c.timer == nil {
		l.t.Errorf("rule 3: in flight %v, timer %v", c.inFlight, c.timer)
	}
}

func asJSON(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}
