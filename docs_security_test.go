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
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, page := range append(pages, "examples/README.md") {
		for _, name := range named.FindAllStringSubmatch(readFile(t, page), -1) {
			if n++; !there[name[1]] {
				t.Errorf("%s names %s, which is not there", page, name[1])
			}
		}
	}
	if n < 150 {
		t.Errorf("the docs name %d tests: are they still read right?", n)
	}
}

// TestEveryThreatHasATest checks the rows of the threat model.
func TestEveryThreatHasATest(t *testing.T) {
	t.Parallel()
	threats := rows(readDocument(t, "docs/security.md")["Who can do what"])
	for _, threat := range threats {
		if len(threat) != 3 || !regexp.MustCompile("`(Test|Fuzz)").MatchString(threat[2]) {
			t.Errorf("no test: %v", threat)
		}
	}
	if len(threats) < 30 {
		t.Errorf("%d rows: is the page still read right?", len(threats))
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
