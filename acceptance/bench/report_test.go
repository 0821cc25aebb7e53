//go:build acceptance && bench && linux

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"vault-plugin-secrets-autopay/acceptance/harness"
)

// report is all that was measured.
type report struct {
	plan      plan
	date      time.Time
	vault     string
	inProcess []goBenchmark
	subjects  []string // the engine first
	reads     []sideBySide
	cold      figure[time.Duration]
	refresh   duringRefresh
	scale     []scale // one credential first
	soak      soaked
}

type sideBySide struct {
	readers int
	results [][]round // by subject
}

// goBenchmark is one line of `go test -bench`, the median of its runs.
type goBenchmark struct {
	name          string
	ns            figure[float64]
	bytes, allocs float64
}

func (b goBenchmark) String() string {
	return fmt.Sprintf("%.2f µs (%.2f to %.2f), %.0f B, %.0f allocations", b.ns.median/1000, b.ns.least/1000, b.ns.most/1000, b.bytes, b.allocs)
}

var goBenchmarkLine = regexp.MustCompile(`(?m)^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op\s+(\d+) B/op\s+(\d+) allocs/op`)

func parseGoBenchmarks(t *testing.T, out string) []goBenchmark {
	t.Helper()
	var all []goBenchmark
	runs := map[string][]float64{}
	for _, m := range goBenchmarkLine.FindAllStringSubmatch(out, -1) {
		var n [3]float64
		for i, text := range m[2:] {
			n[i], _ = strconv.ParseFloat(text, 64) // digits
		}
		if runs[m[1]] == nil {
			all = append(all, goBenchmark{name: m[1], bytes: n[1], allocs: n[2]})
		}
		runs[m[1]] = append(runs[m[1]], n[0])
	}
	if len(all) == 0 {
		t.Fatalf("no benchmarks in:\n%s", out)
	}
	for i := range all {
		all[i].ns = over(runs[all[i].name], func(ns float64) float64 { return ns })
	}
	return all
}

func (r *report) benchmark(name string) goBenchmark {
	i := slices.IndexFunc(r.inProcess, func(b goBenchmark) bool { return b.name == name })
	if i < 0 {
		return goBenchmark{name: name + " is gone", ns: figure[float64]{median: 1e12}}
	}
	return r.inProcess[i]
}

// wanted is one target, and what was measured.
type wanted struct {
	what, want, got string
	met             bool
}

// targets are held at 8 readers, as medians of the ratios within each round.
func (r *report) targets() []wanted {
	atLeast := func(what string, want float64, got figure[float64]) wanted {
		return wanted{what, fmt.Sprintf("at least %.1f", want), spread(got, "%.2f"), got.median >= want}
	}
	atMost := func(what string, want, got float64, format string) wanted {
		return wanted{what, "at most " + fmt.Sprintf(format, want), fmt.Sprintf(format, got), got <= want}
	}
	eight := r.reads[1].results
	most := r.scale[len(r.scale)-2] // the last is the one with many mounts
	one := r.scale[0]
	n := thousands(float64(most.names))
	hot, tick := r.benchmark("HotRead/credentials=1"), r.benchmark("Tick")
	early, late := r.soak.parts[:3], r.soak.parts[len(r.soak.parts)-3:]
	used := func(parts []soakPart) float64 {
		return over(parts, func(p soakPart) float64 { return p.memory }).median
	}
	return []wanted{
		atLeast("Read rate, compared with the ordinary plugin from memory", 1.3, ratio(eight[0], eight[1], perSecond)),
		atLeast("… with 1 storage read", 1.6, ratio(eight[0], eight[2], perSecond)),
		atLeast("… with 3 storage reads", 2, ratio(eight[0], eight[3], perSecond)),
		{"p99 during a refresh, compared with p99 otherwise", "at most 1.5", spread(r.refresh.ratio, "%.2f"), r.refresh.ratio.median <= 1.5},
		atLeast("Read rate with "+n+" credentials, compared with one", 0.9, ratio(most.rounds, one.rounds, perSecond)),
		atMost("Additional memory with "+n+" credentials", 60, most.memory-one.memory, "%.0f MB"),
		atMost("First read after Vault serves again, "+n+" credentials", 1000, ms(most.added.median), "%.0f ms"),
		atMost("Periodic call that finds nothing due, 10,000 credentials", 50, tick.ns.median/1e6, "%.1f ms"),
		atMost("Hot read in process", 2, hot.ns.median/1000, "%.2f µs"),
		atMost("Hot read, allocations", 12, hot.allocs, "%.0f"),
		atMost("Soak: memory in the last three tenths, compared with the first three", 1.1, used(late)/used(early), "%.2f"),
		atMost("Soak: goroutines at the end, compared with early ones", 1.1, float64(r.soak.goroutines[1])/float64(r.soak.goroutines[0]), "%.2f"),
	}
}

// write makes the document and its chart.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.svg"), []byte(r.chart()), 0o600); err != nil {
		return err
	}
	name := filepath.Join(dir, "benchmarks.md")
	page, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a quick run has a folder of its own
		return err
	}
	_, rest, _ := strings.Cut(string(page), byHand)
	return os.WriteFile(name, []byte(r.document()+byHand+rest), 0o600)
}

// byHand begins the part of the page that is not written here.
const byHand = "\n## Storms and upgrades\n"

func (r *report) document() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`# Benchmarks

This page compares the cost of a token read with other ways to serve a token. `+"`make bench`"+` generated all sections before
[Storms and upgrades](#storms-and-upgrades) on %s: Vault %s, the plugin %s, %s, %s, %d processors (%s),
shared by Vault, the plugins, the readers and the simulator. Absolute figures vary between machines; the ratios should be more stable.

All plugins are mounted in one Vault server (integrated storage, no TLS, no audit device). Readers read over HTTP in a closed loop. A figure is
the median of %d rounds of %v, with the minimum and maximum in brackets; a ratio is computed within each round.

The *ordinary plugin* ([acceptance/bench/floor](../acceptance/bench/floor/main.go)) is the smallest possible engine on the SDK's framework. An
engine that keeps its token in storage needs at least one storage read per request. KV v1, as a part of Vault, shows the overhead of a separate
plugin process.
`, r.date.Format("2 January 2006"), r.vault, harness.PluginVersion, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU(), processor(),
		r.plan.rounds, r.plan.measure)
	p("## Targets\n\n| what | target | measured |\n|---|---|---|")
	all := "All targets are met."
	for _, w := range r.targets() {
		if !w.met {
			all, w.got = "A target is missed.", w.got+", **missed**"
		}
		p("| %s | %s | %s |", w.what, w.want, w.got)
	}
	p("\n%s Read rates are those of 8 readers. *Hot read* is `make gobench`; *soak* is %v of load on %d credentials that are due every 5 s.",
		all, short(r.soak.took), r.soak.names)
	p("\n## Reads side by side\n\n![Reads a second](benchmarks.svg)")
	p("\n| | reads/s with 1, 8 and 64 readers | the engine compared with this | p99 ms, 8 readers |\n|---|---|---|---|")
	for i, subject := range r.subjects {
		var rates, times []string
		for _, side := range r.reads {
			rates = append(rates, thousands(over(side.results[i], perSecond).median))
			times = append(times, fmt.Sprintf("%.2f", ratio(side.results[0], side.results[i], perSecond).median))
		}
		if i == 0 {
			times = []string{"–"}
		}
		eight := r.reads[1].results[i]
		p("| %s | %s | %s | %s |", subject, strings.Join(rates, "; "), strings.Join(times, "; "),
			spread(over(eight, func(r round) float64 { return ms(r.p99) }), "%.2f"))
	}
	p("\nThe first read of a credential that was stored with `verify=false` adds %s ms to Autopay's response time.", spreadMS(r.cold))
	p("\n## Many credentials, many mounts\n\n8 readers go through all credentials. *Memory* is the plugin process's own (`RssAnon`). *First read* is the time from Vault's first answer\n" +
		"after the unseal to the first token.\n\n" +
		"| mounts | credentials | reads/s | compared with one credential | memory MB | first read ms |\n|---|---|---|---|---|---|")
	for _, sc := range r.scale {
		p("| %d | %s | %s | %s | %.1f | %s |", sc.mounts, thousands(float64(sc.names)), spreadThousands(over(sc.rounds, perSecond)),
			spread(ratio(sc.rounds, r.scale[0].rounds, perSecond), "%.2f"), sc.memory, spreadMS(sc.added))
	}
	return b.String()
}

// chart is a group of bars for each number of readers. Its colors are readable on white and on black.
func (r *report) chart() string {
	const (
		width, left, right = 860, 250, 90
		bar, gap, head     = 20, 5, 34
	)
	colors := []string{"#2f81f7", "#8b949e", "#8b949e", "#8b949e", "#a371f7"}
	var most float64
	for _, side := range r.reads {
		for _, rounds := range side.results {
			most = max(most, over(rounds, perSecond).most)
		}
	}
	x := func(rate float64) float64 { return left + rate/most*(width-left-right) }
	var b strings.Builder
	y := 10
	for _, side := range r.reads {
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">%s</text>\n", left, y+18, plural(side.readers, "reader"))
		y += head
		for i, rounds := range side.results {
			rate := over(rounds, perSecond)
			mid := y + bar/2
			fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", left-8, mid+5, r.subjects[i])
			fmt.Fprintf(&b, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left, y, x(rate.median)-left, bar, colors[i])
			fmt.Fprintf(&b, "<path d=\"M%.1f %dH%.1fM%.1f %dv8M%.1f %dv8\" stroke=\"#d29922\" stroke-width=\"2\"/>\n", x(rate.least), mid, x(rate.most), x(rate.least), mid-4, x(rate.most), mid-4)
			fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", x(rate.most)+8, mid+5, thousands(rate.median))
			y += bar + gap
		}
		y += gap
	}
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" font-size=\"12\">Reads a second over HTTP: median of %d rounds, with the least and the most. Vault %s, %s.</text>\n",
		8, y+16, r.plan.rounds, r.vault, plural(runtime.NumCPU(), "processor"))
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" font-family=\"system-ui, sans-serif\" font-size=\"14\" fill=\"#7d8590\">\n"+
		"<title>Reads a second, by number of readers</title>\n%s</svg>\n", width, y+28, width, b.String())
}

func spread(f figure[float64], format string) string {
	return fmt.Sprintf(format+" ("+format+"–"+format+")", f.median, f.least, f.most)
}

func spreadMS(f figure[time.Duration]) string {
	return spread(figure[float64]{ms(f.median), ms(f.least), ms(f.most)}, "%.1f")
}

func spreadThousands(f figure[float64]) string {
	return fmt.Sprintf("%s (%s–%s)", thousands(f.median), thousands(f.least), thousands(f.most))
}

// thousands is a whole number with commas.
func thousands(n float64) string {
	text := fmt.Sprintf("%.0f", n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// short is a duration without zeros at its end: 10m, not 10m0s.
func short(d time.Duration) string {
	text := strings.TrimSuffix(d.Round(time.Second).String(), "m0s")
	if text != d.Round(time.Second).String() {
		text += "m"
	}
	return text
}

// processor is what the kernel calls it.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // without it the name is unknown
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown"
}
