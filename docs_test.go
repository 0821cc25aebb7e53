package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"vault-plugin-secrets-autopay/internal/autopaysim"
)

// document is a page of the docs: its sections by their second-level headings.
type document map[string]string

func readDocument(t *testing.T, path string) document {
	t.Helper()
	d := document{}
	for _, section := range strings.Split("\n"+readFile(t, path), "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		d[title] = body
	}
	return d
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// under returns the text under a third-level heading of a section.
func under(section, heading string) string {
	_, after, _ := strings.Cut(section, "\n### "+heading+"\n")
	body, _, _ := strings.Cut(after, "\n### ")
	return body
}

// rows returns the cells of the tables in a text, without their headings.
func rows(text string) [][]string {
	var found [][]string
	before := false // whether the last line was a table's
	for line := range strings.Lines(text) {
		line, is := strings.CutPrefix(strings.TrimSpace(line), "|")
		if is && before && !strings.HasPrefix(line, "---") {
			cells := strings.Split(strings.TrimSuffix(strings.ReplaceAll(line, `\|`, "\x00"), "|"), "|")
			for i := range cells {
				cells[i] = strings.ReplaceAll(strings.TrimSpace(cells[i]), "\x00", "|")
			}
			found = append(found, cells)
		}
		before = is
	}
	return found
}

var inCode = regexp.MustCompile("`([^`]*)`")

// quoted returns the parts of a text that are in backquotes.
func quoted(text string) []string {
	var found []string
	for _, match := range inCode.FindAllStringSubmatch(text, -1) {
		found = append(found, match[1])
	}
	return found
}

// apiSections are the sections of docs/api.md with the operations that they describe.
var apiSections = map[string]struct {
	path string
	op   logical.Operation
}{
	"Create or update a credential": {"config", logical.UpdateOperation},
	"Read a credential":             {"config", logical.ReadOperation},
	"List credentials":              {"config/", logical.ListOperation},
	"Delete a credential":           {"config", logical.DeleteOperation},
	"Read the token":                {"token", logical.ReadOperation},
	"Rotate the token":              {"rotate", logical.UpdateOperation},
	"Read the status":               {"status", logical.ReadOperation},
	"Read the metrics":              {"metrics", logical.ReadOperation},
}

// TestDocsAPI compares docs/api.md with the schemas. Every operation has a section
// with a request and a response, and every parameter and field has a line.
func TestDocsAPI(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	api := readDocument(t, "docs/api.md")
	documented := map[string]bool{}
	for title, about := range apiSections {
		section, there := api[title]
		if !there {
			t.Errorf("docs/api.md has no section %q", title)
			continue
		}
		path := e.Route(about.path)
		documented[path.Pattern+" "+string(about.op)] = true
		for _, part := range []string{"Sample request", "Sample response", "Errors"} {
			if under(section, part) == "" {
				t.Errorf("%s: no %s", title, part)
			}
		}
		methods := map[logical.Operation]string{
			logical.ReadOperation: "GET", logical.UpdateOperation: "POST", logical.DeleteOperation: "DELETE", logical.ListOperation: "LIST",
		}
		first := rows(section)[0]
		if want := fmt.Sprintf("[`%s` `/autopay/%s`]", methods[about.op], strings.TrimSuffix(about.path, "/")); fmt.Sprint(first) != want {
			t.Errorf("%s: the first row is %v, want %s", title, first, want)
		}
		compareParameters(t, title, under(section, "Parameters"), path, about.op)

		fields := path.Operations[about.op].Properties().Responses[200]
		if len(fields) == 0 || about.path == "metrics" {
			continue
		}
		for _, row := range rows(under(section, "Sample response")) {
			name := quoted(row[0])[0]
			if fields[0].Fields[name] == nil {
				t.Errorf("%s: %s is not in the answer", title, name)
			}
		}
		for name := range fields[0].Fields {
			if !strings.Contains(under(section, "Sample response"), name) {
				t.Errorf("%s: %s of the answer is not shown", title, name)
			}
		}
	}
	for _, path := range e.Paths {
		for op := range path.Operations {
			if op != logical.CreateOperation && !documented[path.Pattern+" "+string(op)] {
				t.Errorf("docs/api.md lacks %s on %s", op, path.Pattern)
			}
		}
	}
}

var parameterLine = regexp.MustCompile("(?m)^- `([a-z_]+)` `\\(([a-z]+): (.*)\\)`")

// compareParameters compares a list of parameters with a path's fields.
func compareParameters(t *testing.T, title, text string, path *framework.Path, op logical.Operation) {
	t.Helper()
	kinds := map[framework.FieldType]string{
		framework.TypeString: "string", framework.TypeInt: "int", framework.TypeBool: "bool", framework.TypeDurationSecond: "duration",
	}
	want := map[string]string{}
	for name, field := range path.Fields {
		if name != fieldName && op != logical.UpdateOperation {
			continue
		}
		byDefault := fmt.Sprint(field.Default)
		switch {
		case name == fieldName:
			byDefault = fmt.Sprintf("%q", defaultName)
		case strings.Contains(field.Description, "Required at creation"):
			byDefault = "<required at creation>"
		case field.Default == nil && field.Type == framework.TypeString:
			byDefault = `""`
		case field.Default == nil:
			byDefault = "0"
		case field.Type == framework.TypeString:
			byDefault = strconv.Quote(byDefault)
		}
		want[name] = kinds[field.Type] + ": " + byDefault
	}
	got := map[string]string{}
	for _, match := range parameterLine.FindAllStringSubmatch(text, -1) {
		got[match[1]] = match[2] + ": " + match[3]
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: the parameters are %v, want %v", title, got, want)
	}
}

// TestDocsREADME compares the tables of README.md with the schemas.
func TestDocsREADME(t *testing.T) {
	t.Parallel()
	e := newEngine(t, autopaysim.Options{})
	var got []string
	for _, row := range rows(readDocument(t, "README.md")["Configuration"]) {
		got = append(got, quoted(row[0])[0])
	}
	want := slices.DeleteFunc(slices.Collect(maps.Keys(e.Route("config").Fields)), func(name string) bool { return name == fieldName })
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("fields %v, want %v", got, want)
	}
}

// TestDocsMetrics compares the table of metrics with a scrape.
func TestDocsMetrics(t *testing.T) {
	t.Parallel()
	e := configured(t)
	want := map[string]bool{}
	for s := range e.scrape() {
		metric, labels, _ := strings.Cut(s, "{")
		line := metric
		for _, label := range strings.Split(strings.TrimSuffix(labels, "}"), ",") {
			line += " " + strings.Split(label, "=")[0]
		}
		want[line] = true
	}
	got := map[string]bool{}
	for _, row := range rows(readDocument(t, "docs/api.md")["Read the metrics"])[1:] {
		got[strings.Join(append(quoted(row[0]), quoted(row[2])...), " ")] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("documented are %v, want %v", got, want)
	}
}

// code is the engine's syntax trees.
func engineCode(t *testing.T) []*ast.File {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var trees []*ast.File
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, tree)
	}
	return trees
}

// literal returns the value of a string in the code, or of a sum of strings.
func literal(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(n.Value)
		return text, err == nil && n.Kind == token.STRING
	case *ast.BinaryExpr:
		left, a := literal(n.X)
		right, b := literal(n.Y)
		return left + right, a && b
	}
	return "", false
}

// logged returns the level and text of a call that logs; "" for another node.
func logged(n ast.Node) (level, text string) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) == 0 {
		return "", ""
	}
	method, ok := call.Fun.(*ast.SelectorExpr)
	text, is := literal(call.Args[0])
	if !ok || !is {
		return "", ""
	}
	if level := strings.ToLower(method.Sel.Name); slices.Contains([]string{"trace", "debug", "info", "warn", "error"}, level) {
		return level, text
	}
	return "", ""
}

var (
	verb      = regexp.MustCompile(`%[a-z]`)
	described = regexp.MustCompile(`(?i)(description|synopsis|summary|help)$`) // fields and constants that help texts are in
)

// answers returns every text of more than one word in the engine's code that is
// neither logged nor part of its help, in the pieces between format verbs.
func answers(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, file := range engineCode(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec:
				return false
			case *ast.CallExpr:
				level, _ := logged(n)
				return level == "" && !strings.HasSuffix(types.ExprString(n.Fun), ".NewDesc") && types.ExprString(n.Fun) != "perCredential"
			case *ast.ValueSpec:
				return !described.MatchString(n.Names[0].Name)
			case *ast.KeyValueExpr:
				return !described.MatchString(types.ExprString(n.Key))
			}
			text, ok := literal(n)
			text = strings.ReplaceAll(text, "%%", "%")
			if ok && strings.Contains(strings.TrimSpace(text), " ") {
				for _, piece := range verb.Split(text, -1) {
					if piece = strings.Trim(piece, " :;,.()"); strings.Contains(piece, " ") {
						found[text] = append(found[text], piece)
					}
				}
			}
			return !ok
		})
	}
	return found
}

// TestDocsErrors holds the table of errors in docs/api.md to the code: each text
// that the engine can answer with has a row, and no row has another.
func TestDocsErrors(t *testing.T) {
	t.Parallel()
	internal := []string{
		"the engine is shutting down",  // "timed out waiting for a token; try again"
		"unsupported protocol version", // crypto/tls's, which the code looks for
		"remote error",                 // crypto/tls's, which the code looks for
	}
	section := regexp.MustCompile("[`\\s]+").ReplaceAllString(readDocument(t, "docs/api.md")["Errors"], " ")
	texts := answers(t)
	for text, pieces := range texts {
		for _, piece := range pieces {
			if !strings.Contains(section, piece) && !slices.Contains(internal, text) {
				t.Errorf("docs/api.md has no row for %q: %q is missing", text, piece)
			}
		}
	}
	vaults := []string{"permission denied", "unsupported operation", "checksums did not match", "plugin version mismatch: …", "plugin not found in the catalog: …"}
	for _, row := range rows(readDocument(t, "docs/api.md")["Errors"]) {
		for _, text := range quoted(row[0]) {
			if !slices.Contains(vaults, text) && !said(texts, text) {
				t.Errorf("errors: nothing says %q", text)
			}
		}
	}
}

var varies = regexp.MustCompile(`\d+|client_secret|…`)

// said reports whether the engine has a documented text, or all of its parts. In it,
// … stands for anything, and a number or a field's name may stand for a format verb.
func said(texts map[string][]string, documented string) bool {
	for _, piece := range varies.Split(documented, -1) {
		piece = strings.Trim(piece, " :;,.()")
		if !strings.Contains(piece, " ") {
			continue // too little to find again
		}
		there := false
		for text := range texts {
			there = there || strings.Contains(text, piece)
		}
		if !there {
			return false
		}
	}
	return true
}

var sample = regexp.MustCompile("(?s)```json\n(.*?)```")

// TestDocsSamples: each JSON sample is valid, and no object in it has a field twice.
func TestDocsSamples(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "README.md", "examples/README.md") {
		for _, block := range sample.FindAllStringSubmatch(readFile(t, page), -1) {
			if err := strict(json.NewDecoder(strings.NewReader(block[1]))); err != nil {
				t.Errorf("%s: %v in %s", page, err, block[1])
			}
		}
	}
}

// strict reads one JSON value in which no object has a field twice.
func strict(from *json.Decoder) error {
	begin, err := from.Token()
	if err != nil || begin != json.Delim('{') && begin != json.Delim('[') {
		return err
	}
	seen := map[json.Token]bool{}
	for from.More() {
		if begin == json.Delim('{') {
			field, err := from.Token()
			if err != nil || seen[field] {
				return fmt.Errorf("field %v: twice, or %w", field, err)
			}
			seen[field] = true
		}
		if err := strict(from); err != nil {
			return err
		}
	}
	_, err = from.Token()
	return err
}

// TestDocsLogLines holds the table of log lines to the code, with their levels.
func TestDocsLogLines(t *testing.T) {
	t.Parallel()
	want, got := map[string]string{}, map[string]string{}
	for _, file := range engineCode(t) {
		ast.Inspect(file, func(n ast.Node) bool {
			if level, text := logged(n); level != "" {
				want[text] = level
			}
			return true
		})
	}
	for _, row := range rows(readDocument(t, "docs/operations.md")["Log lines"]) {
		got[quoted(row[1])[0]] = row[0]
	}
	if !maps.Equal(got, want) {
		t.Errorf("log lines %v, want %v", got, want)
	}
	var events []string
	for _, row := range rows(readDocument(t, "docs/operations.md")["Events"]) {
		events = append(events, quoted(row[0])[0])
	}
	if want := []string{eventRotate.kind, eventRotateFail.kind, eventRefused.kind, eventConfigWrite.kind, eventConfigDelete.kind}; !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
}

var (
	snippet = regexp.MustCompile("(?s)```(?:hcl|yaml)\n(.*?)```")
	spaces  = regexp.MustCompile(`\s+`)
)

// TestDocsSnippets: each line of a snippet in the docs is in one of the examples,
// which other tests run.
func TestDocsSnippets(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	err := filepath.WalkDir("examples", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		for line := range strings.Lines(readFile(t, path)) {
			there[spaces.ReplaceAllString(line, "")] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, agent, _ := strings.Cut(readDocument(t, "README.md")["Read the token"], "\n### Vault Agent\n")
	agent, _, _ = strings.Cut(agent, "\n### ")
	sections := readDocument(t, "docs/consumers.md")
	sections["README.md, Vault Agent"] = agent
	delete(sections, "Nomad") // which has no example
	n := 0
	for title, section := range sections {
		for _, block := range snippet.FindAllStringSubmatch(section, -1) {
			for line := range strings.Lines(block[1]) {
				n++
				if text := spaces.ReplaceAllString(line, ""); text != "" && text[0] != '#' && !there[text] {
					t.Errorf("%s: no example says %q", title, line)
				}
			}
		}
	}
	if n < 60 {
		t.Errorf("only %d lines of snippets found", n)
	}
}

// TestDocsNameRealTests checks that every test that the docs name exists.
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
				t.Errorf("%s names %s, which does not exist", page, name[1])
			}
		}
	}
	if n < 150 {
		t.Errorf("the docs name %d tests: does this test still read them correctly?", n)
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
		t.Errorf("%d rows: does this test still read the page correctly?", len(threats))
	}
}

// TestDependenciesAreListed checks that docs/dependencies.md lists all direct ones.
func TestDependenciesAreListed(t *testing.T) {
	t.Parallel()
	text := readFile(t, "docs/dependencies.md")
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(readFile(t, "go.mod"), -1)
	if len(direct) < 4 {
		t.Errorf("%d direct dependencies: does this test still read go.mod correctly?", len(direct))
	}
	for _, module := range direct {
		if !strings.Contains(text, "| `"+module[1]+"` |") {
			t.Errorf("%s is not listed", module[1])
		}
	}
}

// TestDependabotCoversEveryModule checks that each go.mod is in Dependabot's file.
func TestDependabotCoversEveryModule(t *testing.T) {
	t.Parallel()
	listed := readFile(t, ".github/dependabot.yml")
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "go.mod" {
			if folder := filepath.ToSlash(filepath.Join("/", filepath.Dir(path))); !strings.Contains(listed, "- "+folder+"\n") {
				t.Errorf("Dependabot does not know %s", folder)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestChangelogHasTheVersion checks the heading that the release workflow looks for.
func TestChangelogHasTheVersion(t *testing.T) {
	t.Parallel()
	heading := regexp.MustCompile(`(?m)^## ` + regexp.QuoteMeta(version) + ` - 20\d\d-\d\d-\d\d$`)
	if !heading.MatchString(readFile(t, "CHANGELOG.md")) {
		t.Errorf("CHANGELOG.md has no dated section for %s", version)
	}
}
