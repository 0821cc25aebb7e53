package main

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestHouse holds the engine's files to the floors in docs/architecture.md: a file
// uses only what its own floor or a lower one declares, no two files use each
// other, directly or around a corner, and every file has its place.
func TestHouse(t *testing.T) {
	t.Parallel()
	floors := map[string]int{} // by file; higher numbers are further down
	for floor, row := range rows(readDocument(t, "docs/architecture.md")["Files"]) {
		for _, file := range quoted(row[0]) {
			if filepath.Ext(file) == ".go" {
				floors[file] = floor
			}
		}
	}
	uses := fileUses(t)
	for _, file := range slices.Sorted(maps.Keys(uses)) {
		if _, planned := floors[file]; !planned {
			t.Errorf("%s has no floor in docs/architecture.md", file)
		}
	}
	for file := range floors {
		if _, found := uses[file]; !found {
			t.Errorf("docs/architecture.md lists %s, which is not there", file)
		}
	}
	for _, problem := range houseProblems(floors, uses) {
		t.Error(problem)
	}
}

// TestHouseProblems breaks a small house.
func TestHouseProblems(t *testing.T) {
	t.Parallel()
	floors := map[string]int{"top.go": 0, "left.go": 1, "right.go": 1, "bottom.go": 2}
	for name, test := range map[string]struct {
		uses map[string]map[string]string
		want string
	}{
		"down and aside": {map[string]map[string]string{"top.go": {"left.go": "a", "bottom.go": "b"}, "left.go": {"right.go": "c"}}, "[]"},
		"up":             {map[string]map[string]string{"bottom.go": {"left.go": "a"}}, "[bottom.go uses a of left.go, which is further up]"},
		"in a circle":    {map[string]map[string]string{"left.go": {"right.go": "a"}, "right.go": {"left.go": "b"}}, "[left.go and right.go use each other]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fmt.Sprint(houseProblems(floors, test.uses)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// houseProblems lists the uses that go up, and the circles.
func houseProblems(floors map[string]int, uses map[string]map[string]string) []string {
	var problems []string
	reaches := map[string]map[string]bool{}
	var reach func(from, file string)
	reach = func(from, file string) {
		for used := range uses[file] {
			if !reaches[from][used] {
				reaches[from][used] = true
				reach(from, used)
			}
		}
	}
	for file := range uses {
		reaches[file] = map[string]bool{}
		reach(file, file)
	}
	for _, file := range slices.Sorted(maps.Keys(uses)) {
		for _, used := range slices.Sorted(maps.Keys(uses[file])) {
			if floors[used] < floors[file] {
				problems = append(problems, fmt.Sprintf("%s uses %s of %s, which is further up", file, uses[file][used], used))
			}
		}
		for _, other := range slices.Sorted(maps.Keys(reaches[file])) {
			if file < other && reaches[other][file] {
				problems = append(problems, fmt.Sprintf("%s and %s use each other", file, other))
			}
		}
	}
	return problems
}

// exportData finds the compiled form of the engine's dependencies.
func exportData(t *testing.T) func(path string) (io.ReadCloser, error) {
	t.Helper()
	list, err := exec.CommandContext(t.Context(), "go", "list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	compiled := map[string]string{}
	for line := range strings.Lines(string(list)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		compiled[path] = file
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(compiled[path]) }
}

// fileUses type-checks the engine and returns, for each of its files, the other
// files whose declarations it uses, each with the name of one. Fields and methods
// count as declared where they stand.
func fileUses(t *testing.T) map[string]map[string]string {
	t.Helper()
	fset := token.NewFileSet()
	paths, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	uses := map[string]map[string]string{}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		uses[path] = map[string]string{}
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: importer.ForCompiler(fset, "gc", exportData(t))}
	pkg, err := config.Check("vault-plugin-secrets-autopay", fset, files, info)
	if err != nil {
		t.Fatal(err)
	}
	for ident, object := range info.Uses {
		if object.Pkg() != pkg {
			continue
		}
		from, to := fset.Position(ident.Pos()).Filename, fset.Position(object.Pos()).Filename
		if from != to {
			uses[from][to] = object.Name()
		}
	}
	return uses
}
