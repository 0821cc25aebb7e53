// Package prometheus holds examples/prometheus to the real promtool and to
// Prometheus' own PromQL parser. It is a module of its own, so that its
// dependencies meet nobody else's.
package prometheus

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v2"
)

const examples = "../../../examples/prometheus"

// series are all that the engine exposes at autopay/metrics, with their labels.
var series = map[string][]string{
	"autopay_build_info":                            {"version"},
	"autopay_consecutive_failures":                  {"name"},
	"autopay_credential_state":                      {"name", "state"},
	"autopay_token_expiry_timestamp_seconds":        {"name"},
	"autopay_token_next_rotation_timestamp_seconds": {"name"},
	"autopay_token_reads_total":                     {"name", "outcome"},
	"autopay_token_request_duration_seconds_bucket": {"name", "le"},
	"autopay_token_request_duration_seconds_count":  {"name"},
	"autopay_token_request_duration_seconds_sum":    {"name"},
	"autopay_token_request_limit":                   {"name"},
	"autopay_token_requests_24h":                    {"name"},
	"autopay_token_requests_total":                  {"name", "outcome"},
	"up":                                            {}, // made by Prometheus itself
}

// values are all that a label of the engine's may hold, where they are few.
var values = map[string]map[string][]string{
	"autopay_credential_state":     {"state": {"ok", "degraded", "failing", "pending"}},
	"autopay_token_requests_total": {"outcome": {"success", "refused", "error", "limited"}},
	"autopay_token_reads_total":    {"outcome": {"ok", "degraded", "error"}},
}

// added are the labels that Prometheus adds to every series.
var added = []string{"__name__", "job", "instance"}

var suiteDir string // removed at the end

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "autopay-prometheus-")
	if err != nil {
		panic(err)
	}
	suiteDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// TestSeriesAreTheEngines holds the list above against docs/api.md, which a test
// of the engine holds against a scrape.
func TestSeriesAreTheEngines(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, row := range regexp.MustCompile("(?m)^\\| `(autopay_\\w+)` \\| (\\w+) \\| (.*?) \\|").FindAllStringSubmatch(string(page), -1) {
		metric, want := row[1], regexp.MustCompile(`\w+`).FindAllString(row[3], -1)
		if row[2] == "histogram" {
			metric += "_count"
		}
		if n++; !slices.Equal(series[metric], want) {
			t.Errorf("%s has the labels %v here, %v in docs/api.md", metric, series[metric], want)
		}
	}
	if n != len(series)-3 { // up, and two of the histogram's
		t.Errorf("docs/api.md has %d metrics, %d are here", n, len(series)-3)
	}
}

func TestExamplePrometheusConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, file := range []string{"prometheus.yml", "alerts.yml"} {
		text, err := os.ReadFile(filepath.Join(examples, file))
		if err != nil {
			t.Fatal(err)
		}
		// promtool wants the file of the Vault token to be there.
		token := filepath.Join(dir, "vault-token")
		replaced := strings.ReplaceAll(string(text), "/run/prometheus/vault-token", token)
		if err := os.WriteFile(filepath.Join(dir, file), []byte(replaced), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(token, []byte("hvs.none"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	promtool(t, dir, "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
}

func TestExamplePrometheusAlerts(t *testing.T) {
	t.Parallel()
	promtool(t, examples, "test", "rules", "alerts_test.yml")
}

func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	bin, err := filepath.Abs("../../../bin/test/promtool")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("%v: scripts/testtools.sh formats makes it", err)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("promtool %v: %v", args, err)
	}
	t.Logf("promtool %v\n%s", args, out)
}

// TestEveryAlertIsTested wants a test in which each alert fires, and one in
// which it does not.
func TestEveryAlertIsTested(t *testing.T) {
	t.Parallel()
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		} `yaml:"tests"`
	}
	readYAML(t, "alerts_test.yml", &tests)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, alert := range test.Alerts {
			if len(alert.Want) > 0 {
				fires[alert.Name] = true
			} else {
				silent[alert.Name] = true
			}
		}
	}
	for _, rule := range alerts(t) {
		if !fires[rule.Alert] || !silent[rule.Alert] {
			t.Errorf("%s: tested firing %v, not firing %v", rule.Alert, fires[rule.Alert], silent[rule.Alert])
		}
	}
}

// TestAlertsAreOfUse wants of each alert what the one who is called needs.
func TestAlertsAreOfUse(t *testing.T) {
	t.Parallel()
	rules := alerts(t)
	if len(rules) == 0 {
		t.Fatal("no alerts")
	}
	for _, rule := range rules {
		if severity := rule.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q", rule.Alert, severity)
		}
		if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s: no summary or no description", rule.Alert)
		}
		checkExpr(t, rule.Alert, rule.Expr)
	}
}

// TestDashboard parses all that Grafana would ask Prometheus for.
func TestDashboard(t *testing.T) {
	t.Parallel()
	board := readDashboard(t)
	if board.UID == "" || board.Title == "" || len(board.Panels) == 0 {
		t.Error("the dashboard lacks uid, title or panels")
	}

	shown := map[string]bool{}
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, panel := range board.Panels {
		if ids[panel.ID] {
			t.Errorf("%s: its id %d is taken", panel.Title, panel.ID)
		}
		ids[panel.ID] = true
		for x := range panel.GridPos.W {
			for y := range panel.GridPos.H {
				cell := [2]int{panel.GridPos.X + x, panel.GridPos.Y + y}
				if other, ok := taken[cell]; ok {
					t.Fatalf("%s lies on %s", panel.Title, other)
				}
				if cell[0] >= 24 {
					t.Fatalf("%s is wider than the dashboard", panel.Title)
				}
				taken[cell] = panel.Title
			}
		}
		if len(panel.Targets) == 0 {
			t.Errorf("%s: asks for nothing", panel.Title)
		}
		// With Grafana's default interval of 15 s, $__rate_interval is too short for a scrape every 30 s.
		if panel.Type == "timeseries" && panel.Interval != "30s" {
			t.Errorf("%s: interval %q, want the 30s of the scrape", panel.Title, panel.Interval)
		}
		for _, target := range panel.Targets {
			for _, name := range checkExpr(t, panel.Title, filled(target.Expr)) {
				shown[name] = true
			}
		}
	}

	for _, annotation := range board.Annotations.List {
		checkExpr(t, annotation.Name, filled(annotation.Expr))
	}

	variable := regexp.MustCompile(`^label_values\((.+), *(\w+)\)$`)
	for _, v := range board.Templating.List {
		if v.Type != "query" {
			continue
		}
		parts := variable.FindStringSubmatch(v.Definition)
		if parts == nil {
			t.Errorf("variable %s: definition %q", v.Name, v.Definition)
			continue
		}
		for _, name := range checkExpr(t, v.Name, parts[1]) {
			if !slices.Contains(slices.Concat(series[name], added), parts[2]) {
				t.Errorf("variable %s: %s has no label %s", v.Name, name, parts[2])
			}
		}
	}

	for name := range series {
		// The sum is of use in a query of one's own only.
		if !shown[name] && name != "autopay_token_request_duration_seconds_sum" {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// TestDashboardValues runs queries of the dashboard in Prometheus, where they
// must give no time below zero, and no NaN before there is anything to show.
func TestDashboardValues(t *testing.T) {
	t.Parallel()
	type sample struct {
		Labels string
		Value  float64
	}
	type exprTest struct {
		Expr     string
		EvalTime string   `yaml:"eval_time"`
		Want     []sample `yaml:"exp_samples"`
	}
	var tests []exprTest
	for _, panel := range readDashboard(t).Panels {
		for _, target := range panel.Targets {
			query := filled(target.Expr)
			switch panel.Title {
			case "Token dies in":
				tests = append(tests,
					exprTest{query, "0m", []sample{{`{name="oslo"}`, 60}}},
					exprTest{query, "3m", []sample{{`{name="oslo"}`, 0}}})
			case "Duration of token requests":
				tests = append(tests, exprTest{query, "0m", nil}, exprTest{query, "2m", nil})
			}
		}
	}
	if len(tests) != 6 {
		t.Fatalf("%d tests of three queries, want 6", len(tests))
	}

	inputs := []map[string]string{{"series": `autopay_token_expiry_timestamp_seconds{name="oslo"}`, "values": "60x5"}}
	for _, name := range []string{`sum{name="oslo"}`, `count{name="oslo"}`, `bucket{name="oslo",le="1"}`, `bucket{name="oslo",le="+Inf"}`} {
		inputs = append(inputs, map[string]string{"series": "autopay_token_request_duration_seconds_" + name, "values": "0x5"})
	}
	text, err := yaml.Marshal(map[string]any{"tests": []any{map[string]any{
		"interval": "1m", "input_series": inputs, "promql_expr_test": tests,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "dashboard.yml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "test", "rules", "dashboard.yml")
}

// dashboard is what Grafana makes of the example, as far as it is tested.
type dashboard struct {
	UID, Title string
	Panels     []struct {
		ID       int
		Title    string
		Type     string
		Interval string
		GridPos  struct{ H, W, X, Y int }
		Targets  []struct{ Expr, RefID string }
	}
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(examples, "dashboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board dashboard
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	return board
}

// filled puts values in for Grafana's variables.
func filled(expr string) string {
	return strings.NewReplacer("$__rate_interval", "5m", "$name", ".*").Replace(expr)
}

// checkExpr wants PromQL that names only series and labels that there are, and
// returns the series.
func checkExpr(t *testing.T, where, expr string) []string {
	t.Helper()
	parsed, err := parser.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
		return nil
	}
	var names []string
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		names = append(names, selector.Name)
		known, ok := series[selector.Name]
		if !ok {
			t.Errorf("%s: there is no series %q", where, selector.Name)
			return nil
		}
		for _, matcher := range selector.LabelMatchers {
			if !slices.Contains(slices.Concat(known, added), matcher.Name) {
				t.Errorf("%s: %s has no label %s", where, selector.Name, matcher.Name)
			}
			allowed, few := values[selector.Name][matcher.Name]
			if few && !slices.ContainsFunc(allowed, matcher.Matches) {
				t.Errorf("%s: no %s is ever %s", where, selector.Name, matcher)
			}
		}
		return nil
	})
	return names
}

type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alert }
	}
	readYAML(t, "alerts.yml", &file)
	var all []alert
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

func readYAML(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(examples, file))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
