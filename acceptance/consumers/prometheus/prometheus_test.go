// Package prometheus holds examples/prometheus to the real promtool and to
// Prometheus' own PromQL parser. It is a module of its own, so that its
// dependencies do not mix with ours.
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
	"github.com/prometheus/prometheus/promql/promqltest"
	"go.yaml.in/yaml/v2"
)

const examples = "../../../examples/prometheus"

// values are all that a label of the engine's may hold, where they are few.
var values = map[string]map[string][]string{
	"autopay_credential_state":     {"state": {"ok", "degraded", "failing", "pending"}},
	"autopay_token_requests_total": {"outcome": {"success", "refused", "error", "limited"}},
	"autopay_token_reads_total":    {"outcome": {"ok", "degraded", "error"}},
}

// readSeries returns all series that the engine exposes at autopay/metrics, with their labels. It reads docs/api.md,
// which a test holds to the code.
func readSeries(t *testing.T) map[string][]string {
	t.Helper()
	series := map[string][]string{"up": {"job", "instance"}} // made by Prometheus itself
	row := regexp.MustCompile("(?m)^\\| `(autopay_\\w+)` \\| (\\w+) \\| (.*?) \\|")
	for _, cells := range row.FindAllStringSubmatch(read(t, "../../docs/api.md"), -1) {
		metric, labels := cells[1], append(regexp.MustCompile(`\w+`).FindAllString(cells[3], -1), "job", "instance")
		if cells[2] != "histogram" {
			series[metric] = labels
			continue
		}
		series[metric+"_count"], series[metric+"_sum"], series[metric+"_bucket"] = labels, labels, append(labels, "le")
	}
	return series
}

func TestExamplePrometheusConfig(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	token := filepath.Join(dir, "vault-token") // promtool wants it to be there
	for file, text := range map[string]string{
		token:            "hvs.none",
		"prometheus.yml": strings.ReplaceAll(read(t, "prometheus.yml"), "/run/prometheus/vault-token", token),
		"alerts.yml":     read(t, "alerts.yml"),
	} {
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o600); err != nil {
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
	bin, err := filepath.Abs("../../../bin/test/promtool") // scripts/testtools.sh formats makes it
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

// TestExampleQueries parses all that the alerts and the dashboard ask Prometheus for. They may name only series and
// labels that there are.
func TestExampleQueries(t *testing.T) {
	t.Parallel()
	series, shown := readSeries(t), map[string]bool{}
	if len(series) < 13 {
		t.Errorf("docs/api.md has the series %v", series)
	}
	// check returns the series in a query.
	check := func(where, expr string) (names []string) {
		t.Helper()
		parsed, err := parser.ParseExpr(expr)
		if err != nil {
			t.Errorf("%s: %s: %v", where, expr, err)
			return nil
		}
		parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
			selector, ok := node.(*parser.VectorSelector)
			if !ok {
				return nil
			}
			names = append(names, selector.Name)
			labels, known := series[selector.Name]
			if !known {
				t.Errorf("%s: there is no series %q", where, selector.Name)
			}
			for _, matcher := range selector.LabelMatchers {
				if matcher.Name != "__name__" && !slices.Contains(labels, matcher.Name) {
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

	var alerts struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "alerts.yml")), &alerts); err != nil || len(alerts.Groups) == 0 {
		t.Fatalf("no alerts: %v", err)
	}
	for _, rule := range alerts.Groups[0].Rules {
		check(rule.Alert, rule.Expr)
	}

	board := readDashboard(t)
	for _, panel := range board.Panels {
		// With Grafana's default interval of 15 s, $__rate_interval is too short for a scrape every 30 s.
		if panel.Type == "timeseries" && panel.Interval != "30s" {
			t.Errorf("%s: interval %q, want the 30s of the scrape", panel.Title, panel.Interval)
		}
		for _, target := range panel.Targets {
			for _, name := range check(panel.Title, target.Expr) {
				shown[name] = true
			}
		}
	}
	for name := range series {
		if !shown[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	for _, annotation := range board.Annotations.List {
		check(annotation.Name, annotation.Expr)
	}
	for _, v := range board.Templating.List {
		if v.Type != "query" {
			continue
		}
		parts := regexp.MustCompile(`^label_values\((.+), *(\w+)\)$`).FindStringSubmatch(v.Definition)
		if parts == nil || !slices.Contains(series[parts[1]], parts[2]) {
			t.Errorf("variable %s: definition %q", v.Name, v.Definition)
		}
	}
}

// TestDashboardValues runs queries of the dashboard, which must give no time below
// zero, and no NaN before there is anything to show.
func TestDashboardValues(t *testing.T) {
	t.Parallel()
	test := `
load 1m
  autopay_token_expiry_timestamp_seconds{name="oslo"} 60x5
  autopay_token_request_duration_seconds_sum{name="oslo"} 0x5
  autopay_token_request_duration_seconds_count{name="oslo"} 0x5
  autopay_token_request_duration_seconds_bucket{name="oslo",le="1"} 0x5
  autopay_token_request_duration_seconds_bucket{name="oslo",le="+Inf"} 0x5

`
	queries := 0
	for _, panel := range readDashboard(t).Panels {
		for _, target := range panel.Targets {
			switch panel.Title {
			case "Token expires in":
				test += "eval instant at 0m " + target.Expr + "\n  {name=\"oslo\"} 60\n\n"
				test += "eval instant at 3m " + target.Expr + "\n  {name=\"oslo\"} 0\n\n"
				queries++
			case "Duration of token requests":
				test += "eval instant at 2m " + target.Expr + "\n\n" // gives nothing
				queries++
			}
		}
	}
	if queries != 3 {
		t.Fatalf("%d of 3 queries", queries)
	}
	promqltest.RunTest(t, test, promqltest.NewTestEngine(t, false, 0, 1000))
}

// dashboard is what Grafana makes of the example, as far as it is tested.
type dashboard struct {
	Panels []struct {
		Title, Type, Interval string
		Targets               []struct{ Expr string }
	}
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
	Annotations struct {
		List []struct{ Name, Expr string }
	}
}

// readDashboard puts values in for Grafana's variables.
func readDashboard(t *testing.T) (board dashboard) {
	t.Helper()
	text := strings.NewReplacer("$__rate_interval", "5m", "$name", ".*").Replace(read(t, "dashboard.json"))
	if err := json.Unmarshal([]byte(text), &board); err != nil {
		t.Fatal(err)
	}
	return board
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(examples, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
