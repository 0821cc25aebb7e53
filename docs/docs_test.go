// Package docs holds tests that compare the documentation with the code: fields and
// their defaults, errors, log lines, metrics, events, files.
package docs

import (
	"cmp"
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
)

const root = ".." // of the repository

// sections returns a page's sections by their second-level headings.
func sections(t *testing.T, page string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, section := range strings.Split("\n"+readFile(t, page), "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		found[title] = body
	}
	return found
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// walk calls f for each file under a folder, with its path from the root.
func walk(t *testing.T, folder string, f func(path string)) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root), folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			f(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pages are the pages of the docs.
func pages(t *testing.T) []string {
	t.Helper()
	found := []string{"README.md", "CONTRIBUTING.md", "examples/README.md"}
	walk(t, "docs", func(path string) {
		if strings.HasSuffix(path, ".md") {
			found = append(found, path)
		}
	})
	return found
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

// openAPI is what these tests need of an OpenAPI document.
type openAPI struct {
	Paths   map[string]map[string]json.RawMessage // path, method
	Schemas map[string]struct {
		Properties map[string]property
	}
}

type property struct {
	Type, Format, Description string
	Default                   any
}

type operation struct {
	RequestBody content
	Responses   map[string]content
}

type content struct {
	Content map[string]struct {
		Schema struct {
			Ref string `json:"$ref"`
		}
	}
}

// readOpenAPI reads the engine's document, which TestOpenAPI in acceptance/engine
// compares with what Vault shows.
func readOpenAPI(t *testing.T) openAPI {
	t.Helper()
	var api openAPI
	if err := json.Unmarshal([]byte(readFile(t, "acceptance/engine/testdata/openapi.json")), &api); err != nil {
		t.Fatal(err)
	}
	return api
}

func (api openAPI) operation(t *testing.T, path, method string) (op operation) {
	t.Helper()
	if err := json.Unmarshal(api.Paths[path][method], &op); err != nil {
		t.Fatal(path, method, err)
	}
	return op
}

// fields are those of a request or response.
func (api openAPI) fields(c content) map[string]property {
	return api.Schemas[strings.TrimPrefix(c.Content["application/json"].Schema.Ref, "#/components/schemas/")].Properties
}

// apiSections are the sections of docs/api.md with the operations that they describe.
var apiSections = map[string]struct{ path, method string }{
	"Create or update a credential": {"config", "post"},
	"Read a credential":             {"config", "get"},
	"List credentials":              {"config/", "get"},
	"Delete a credential":           {"config", "delete"},
	"Read the token":                {"token", "get"},
	"Rotate the token":              {"rotate", "post"},
	"Read the status":               {"status", "get"},
	"Read the metrics":              {"metrics", "get"},
}

// TestDocsAPI compares docs/api.md with the schemas. Every operation has a section
// with a request and a response, and every parameter and field has a line. That of a
// field of a response begins with its description in the schema.
func TestDocsAPI(t *testing.T) {
	t.Parallel()
	api, page := readOpenAPI(t), sections(t, "docs/api.md")
	documented := map[string]bool{}
	for title, about := range apiSections {
		section := page[title]
		documented["/autopay/"+about.path+" "+about.method] = true
		for _, part := range []string{"Sample request", "Sample response", "Errors"} {
			if under(section, part) == "" {
				t.Errorf("%s: no %s", title, part)
			}
		}
		method := strings.ToUpper(about.method)
		if strings.HasSuffix(about.path, "/") {
			method = "LIST"
		}
		path := "/autopay/" + strings.TrimSuffix(about.path, "/")
		if first := rows(section); len(first) == 0 || !slices.Equal(first[0], []string{"`" + method + "`", "`" + path + "`"}) {
			t.Errorf("%s: the first row is not %s on %s", title, method, path)
		}
		op := api.operation(t, "/autopay/"+about.path, about.method)
		_, named := api.Paths["/autopay/"+about.path+"/{name}"]
		compareParameters(t, title, under(section, "Parameters"), api.fields(op.RequestBody), named)

		answer, shown := api.fields(op.Responses["200"]), under(section, "Sample response")
		for _, row := range rows(shown) {
			sentence, _, _ := strings.Cut(strings.ReplaceAll(row[1], "`", ""), ". ")
			if got := answer[quoted(row[0])[0]].Description; got != sentence+"." && about.path != "metrics" {
				t.Errorf("%s: %s is described as %q, and as %q by the schema of the answer", title, row[0], sentence, got)
			}
		}
		for name := range answer {
			if !strings.Contains(shown, name) {
				t.Errorf("%s: %s of the answer is not shown", title, name)
			}
		}
	}
	for path, methods := range api.Paths {
		for _, method := range []string{"get", "post", "put", "patch", "delete"} {
			if methods[method] != nil && !strings.Contains(path, "{") && !documented[path+" "+method] {
				t.Errorf("docs/api.md lacks %s on %s", method, path)
			}
		}
	}
}

var parameterLine = regexp.MustCompile("(?m)^- `([a-z_]+)` `\\(([a-z]+): (.*)\\)`")

// compareParameters compares a list of parameters with the fields of a request.
func compareParameters(t *testing.T, title, text string, fields map[string]property, named bool) {
	t.Helper()
	want, got := map[string]string{}, map[string]string{}
	if named {
		want["name"] = `string: "default"`
	}
	for name, field := range fields {
		kind := map[string]string{"string": "string", "integer": "int", "boolean": "bool", "stringduration": "duration"}[field.Type+field.Format]
		byDefault := fmt.Sprint(field.Default)
		switch {
		case strings.Contains(field.Description, "Required at creation"):
			byDefault = "<required at creation>"
		case kind == "string" && field.Default == nil:
			byDefault = `""`
		case field.Default == nil:
			byDefault = "0"
		case kind == "string":
			byDefault = strconv.Quote(byDefault)
		}
		want[name] = kind + ": " + byDefault
	}
	for _, match := range parameterLine.FindAllStringSubmatch(text, -1) {
		got[match[1]] = match[2] + ": " + match[3]
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: the parameters are %v, want %v", title, got, want)
	}
}

// TestDocsREADME compares the table of fields in README.md with the schema.
func TestDocsREADME(t *testing.T) {
	t.Parallel()
	api := readOpenAPI(t)
	var got []string
	for _, row := range rows(sections(t, "README.md")["Configuration"]) {
		got = append(got, quoted(row[0])[0])
	}
	slices.Sort(got)
	want := slices.Sorted(maps.Keys(api.fields(api.operation(t, "/autopay/config", "post").RequestBody)))
	if !slices.Equal(got, want) {
		t.Errorf("fields %v, want %v", got, want)
	}
}

// inspect calls f for every node of the engine's code, as ast.Inspect does.
func inspect(t *testing.T, f func(ast.Node) bool) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, f)
	}
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

// literals returns the strings in the engine's code that match a pattern.
func literals(t *testing.T, pattern string) []string {
	t.Helper()
	var found []string
	matches := regexp.MustCompile(pattern)
	inspect(t, func(n ast.Node) bool {
		if text, ok := literal(n); ok && matches.MatchString(text) {
			found = append(found, text)
		}
		return true
	})
	slices.Sort(found)
	return slices.Compact(found)
}

// TestDocsMetrics compares the table of metrics with the code, with the labels of
// those that each credential has.
func TestDocsMetrics(t *testing.T) {
	t.Parallel()
	labels := map[string][]string{}
	inspect(t, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && types.ExprString(call.Fun) == "perCredential" {
			metric, _ := literal(call.Args[0])
			labels[metric] = []string{"name"}
			for _, arg := range call.Args[2:] {
				label, _ := literal(arg)
				labels[metric] = append(labels[metric], label)
			}
		}
		return true
	})
	var got []string
	for _, row := range rows(sections(t, "docs/api.md")["Read the metrics"])[1:] {
		metric := quoted(row[0])[0]
		got = append(got, metric)
		if want := labels[metric]; want != nil && !slices.Equal(quoted(row[2]), want) {
			t.Errorf("%s has the labels %v", metric, want)
		}
	}
	slices.Sort(got)
	if want := literals(t, "^autopay_[a-z0-9_]+$"); !slices.Equal(got, want) {
		t.Errorf("documented are %v, want %v", got, want)
	}
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

// TestDocsLogLines holds the table of log lines to the code, with their levels.
func TestDocsLogLines(t *testing.T) {
	t.Parallel()
	want, got := map[string]string{}, map[string]string{}
	inspect(t, func(n ast.Node) bool {
		if level, text := logged(n); level != "" {
			want[text] = level
		}
		return true
	})
	for _, row := range rows(sections(t, "docs/operations.md")["Log lines"]) {
		got[quoted(row[1])[0]] = row[0]
	}
	if !maps.Equal(got, want) {
		t.Errorf("log lines %v, want %v", got, want)
	}
}

// TestDocsEvents holds the table of events to the code.
func TestDocsEvents(t *testing.T) {
	t.Parallel()
	var got []string
	for _, row := range rows(sections(t, "docs/operations.md")["Events"]) {
		got = append(got, quoted(row[0])[0])
	}
	slices.Sort(got)
	if want := literals(t, "^autopay/[a-z-]+$"); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

var (
	verb      = regexp.MustCompile(`%[a-z]`)
	described = regexp.MustCompile(`(?i)(description|synopsis|summary|help)$`) // fields and constants that help texts are in
)

// answers returns every text of more than one word in the engine's code that is
// neither logged nor part of its help.
func answers(t *testing.T) []string {
	t.Helper()
	var found []string
	inspect(t, func(n ast.Node) bool {
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
		if ok && strings.Contains(strings.TrimSpace(text), " ") {
			found = append(found, strings.ReplaceAll(text, "%%", "%"))
		}
		return !ok
	})
	return found
}

// pieces returns the parts of a text that have more than one word and are not
// separated by what varies.
func pieces(text string, varies *regexp.Regexp) []string {
	var found []string
	for _, piece := range varies.Split(text, -1) {
		if piece = strings.Trim(piece, " :;,.()"); strings.Contains(piece, " ") {
			found = append(found, piece)
		}
	}
	return found
}

// TestDocsErrors holds the table of errors in docs/api.md to the code: each text
// that the engine can answer with has a row, and no row has another.
func TestDocsErrors(t *testing.T) {
	t.Parallel()
	internal := []string{
		"the engine is shutting down",  // "timed out waiting for a token; try again"
		"<!doctype html",               // looked for in an answer
		"unsupported protocol version", // crypto/tls's, which the code looks for
		"remote error",                 // crypto/tls's, which the code looks for
	}
	vaults := []string{"permission denied", "unsupported operation", "checksums did not match", "plugin version mismatch: …", "plugin not found in the catalog: …"}
	section, texts := sections(t, "docs/api.md")["Errors"], answers(t)
	flat := regexp.MustCompile("[`\\s]+").ReplaceAllString(section, " ")
	for _, text := range texts {
		for _, piece := range pieces(text, verb) {
			if !strings.Contains(flat, piece) && !slices.Contains(internal, text) {
				t.Errorf("docs/api.md has no row for %q: %q is missing", text, piece)
			}
		}
	}
	// In a row, … stands for anything, and a number or a field's name may stand for a verb.
	varies, all := regexp.MustCompile(`\d+|client_secret|…`), strings.Join(texts, "\n")
	for _, row := range rows(section) {
		for _, text := range quoted(row[0]) {
			for _, piece := range pieces(text, varies) {
				if !slices.Contains(vaults, text) && !strings.Contains(all, piece) {
					t.Errorf("errors: nothing says %q of %q", piece, text)
				}
			}
		}
	}
}

var sample = regexp.MustCompile("(?s)```json\n(.*?)```")

// TestDocsSamples: each JSON sample is valid, and no object in it has a field twice.
func TestDocsSamples(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
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

var (
	snippet = regexp.MustCompile("(?s)```(?:hcl|yaml)\n(.*?)```")
	spaces  = regexp.MustCompile(`\s+`)
)

// TestDocsSnippets: each line of a snippet in the docs is in one of the examples,
// which other tests run.
func TestDocsSnippets(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	walk(t, "examples", func(path string) {
		for line := range strings.Lines(readFile(t, path)) {
			there[spaces.ReplaceAllString(line, "")] = true
		}
	})
	_, agent, _ := strings.Cut(sections(t, "README.md")["Read the token"], "\n### Vault Agent\n")
	agent, _, _ = strings.Cut(agent, "\n### ")
	all := sections(t, "docs/consumers.md")
	all["README.md, Vault Agent"] = agent
	delete(all, "Nomad") // which has no example
	n := 0
	for title, section := range all {
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

var named = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w+)`")

// TestDocsNameRealTests: a test that the docs name exists.
func TestDocsNameRealTests(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	walk(t, ".", func(path string) {
		if strings.HasSuffix(path, "_test.go") {
			for _, match := range declared.FindAllStringSubmatch(readFile(t, path), -1) {
				there[match[1]] = true
			}
		}
	})
	for _, page := range pages(t) {
		for _, name := range named.FindAllStringSubmatch(readFile(t, page), -1) {
			if !there[name[1]] {
				t.Errorf("%s names %s, which does not exist", page, name[1])
			}
		}
	}
}

// TestEveryThreatHasATest checks the last column of the tables of threats.
func TestEveryThreatHasATest(t *testing.T) {
	t.Parallel()
	n := 0
	for _, row := range rows(readFile(t, "docs/security.md")) {
		if len(row) == 3 {
			if n++; !named.MatchString(row[2]) {
				t.Errorf("no test: %v", row)
			}
		}
	}
	if n == 0 {
		t.Error("there are no threats")
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
	walk(t, ".", func(path string) {
		if folder, is := strings.CutSuffix("/"+path, "go.mod"); is {
			if folder = cmp.Or(strings.TrimSuffix(folder, "/"), "/"); !strings.Contains(listed, "- "+folder+"\n") {
				t.Errorf("Dependabot does not know %s", folder)
			}
		}
	})
}

// TestChangelogHasTheVersion checks the heading that the release workflow looks for.
func TestChangelogHasTheVersion(t *testing.T) {
	t.Parallel()
	version := regexp.MustCompile(`(?m)^var version = "(.*)"$`).FindStringSubmatch(readFile(t, "client.go"))
	if version == nil || !regexp.MustCompile(`(?m)^## `+regexp.QuoteMeta(version[1])+` - 20\d\d-\d\d-\d\d$`).MatchString(readFile(t, "CHANGELOG.md")) {
		t.Errorf("CHANGELOG.md has no dated section for the version of client.go, %v", version)
	}
}
