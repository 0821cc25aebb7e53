package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocsNameRealTests checks that every test which the docs point at is there.
func TestDocsNameRealTests(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range declared.FindAllSubmatch(text, -1) {
			there[string(match[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`")
	for _, doc := range []string{"docs/security.md", "docs/architecture.md"} {
		text := readFile(t, doc)
		names := named.FindAllStringSubmatch(text, -1)
		if len(names) < 20 {
			t.Errorf("%s names %d tests: is it still read right?", doc, len(names))
		}
		for _, name := range names {
			if !there[name[1]] {
				t.Errorf("%s names %s, which is not there", doc, name[1])
			}
		}
	}
}

// TestEveryThreatHasATest checks the rows of the threat model.
func TestEveryThreatHasATest(t *testing.T) {
	t.Parallel()
	_, model, _ := strings.Cut(readFile(t, "docs/security.md"), "\n## Who can do what\n")
	model, _, _ = strings.Cut(model, "\n## ")
	rows := 0
	for line := range strings.Lines(model) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| tries |") {
			continue
		}
		rows++
		if cells := strings.Split(strings.Trim(line, "|\n "), " | "); len(cells) != 3 || !regexp.MustCompile("`(Test|Fuzz)").MatchString(cells[2]) {
			t.Errorf("no test: %s", line)
		}
	}
	if rows < 30 {
		t.Errorf("%d rows: is the page still read right?", rows)
	}
}

// TestDependenciesAreListed checks that docs/dependencies.md has the direct ones.
func TestDependenciesAreListed(t *testing.T) {
	t.Parallel()
	text := readFile(t, "docs/dependencies.md")
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(readFile(t, "go.mod"), -1)
	if len(direct) < 4 {
		t.Errorf("%d direct dependencies: is go.mod still read right?", len(direct))
	}
	for _, module := range direct {
		if !strings.Contains(text, "| `"+module[1]+"` |") {
			t.Errorf("%s is not listed", module[1])
		}
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
