package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module          = "trunkline"
	longestFunction = 100 // lines
)

// allowed is the import table of docs/architecture.md: folder -> folders of this module it may import.
// Folders below internal/testbed and test serve tests and the demo; nothing of the product may import them.
var allowed = map[string][]string{
	"cmd/bridge": {"bridge", "bridge/config", "bridge/doctor", "sockets"},
	"bridge": {
		"bridge/command", "bridge/config", "bridge/leg", "bridge/menu", "bridge/number", "bridge/pin", "bridge/quota", "bridge/sound",
		"sip", "matrixcall", "transcode", "db", "sockets",
	},
	"bridge/command":    {},
	"bridge/config":     {"bridge/command", "bridge/menu", "bridge/number", "bridge/pin", "bridge/quota", "bridge/sound"},
	"bridge/doctor":     {"bridge/command", "bridge/config", "db"},
	"bridge/leg":        {},
	"bridge/menu":       {},
	"bridge/number":     {},
	"bridge/pin":        {},
	"bridge/quota":      {},
	"bridge/sound":      {},
	"bridge/sound/make": {"bridge/sound"},
	"sip":               {},
	"sockets":           {},
	"matrixcall":        {"matrixcall/mesh"},
	"matrixcall/mesh":   {},
	"transcode":         {},
	"db":                {},
}

// pure packages decide and never act: no clock, no goroutine, no logger, no chance, no channel.
var pure = []string{"bridge/leg", "bridge/menu", "bridge/quota", "matrixcall/mesh", "transcode"}

// forbiddenInPure names what a pure package may not touch, with the reason a reader is told.
var forbiddenInPure = map[string]string{
	"time.Now":       "the clock is an argument",
	"time.Since":     "the clock is an argument",
	"time.Until":     "the clock is an argument",
	"time.Tick":      "waiting is the shell's",
	"time.After":     "waiting is the shell's",
	"time.AfterFunc": "waiting is the shell's",
	"time.NewTimer":  "waiting is the shell's",
	"time.NewTicker": "waiting is the shell's",
	"time.Sleep":     "waiting is the shell's",
}

var forbiddenImportsInPure = []string{"log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "context", "runtime", "net", "net/http", "os", "sync", "sync/atomic"}

type file struct {
	folder, path string
	set          *token.FileSet
	tree         *ast.File
}

func TestImportTableHolds(t *testing.T) {
	for _, f := range goFiles(t, false) {
		may, known := allowed[f.folder]
		for _, imported := range moduleImports(f.tree) {
			switch {
			case testOnly(f.folder):
				continue
			case !known:
				t.Errorf("%s: folder %q is not in the import table", f.path, f.folder)
			case !slices.Contains(may, imported):
				t.Errorf("%s: %s may not import %s", f.path, f.folder, imported)
			}
		}
	}
}

// TestImageGetsEveryFolder: what the image is built from is a list of its own.
func TestImageGetsEveryFolder(t *testing.T) {
	list, err := os.ReadFile("../../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	listed := strings.Split(string(list), "\n")
	for _, f := range goFiles(t, false) {
		top, _, _ := strings.Cut(f.folder, "/")
		if want := "!" + top; !testOnly(f.folder) && !slices.Contains(listed, want) {
			t.Errorf("%s: .dockerignore has no line %q", f.path, want)
		}
	}
}

func TestPurePackagesDecideOnly(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range goFiles(t, false) {
		if !slices.Contains(pure, f.folder) {
			continue
		}
		seen[f.folder] = true
		for _, spec := range f.tree.Imports {
			if path := strings.Trim(spec.Path.Value, `"`); slices.Contains(forbiddenImportsInPure, path) {
				t.Errorf("%s: pure package %s imports %s", f.path, f.folder, path)
			}
		}
		ast.Inspect(f.tree, func(n ast.Node) bool {
			reason := impurity(n)
			if reason != "" {
				t.Errorf("%s: %s", f.set.Position(n.Pos()), reason)
			}
			return true
		})
	}
	for _, folder := range pure {
		if !seen[folder] {
			t.Errorf("pure package %s has no files: the table is out of date", folder)
		}
	}
}

func TestFunctionsFitOnAPage(t *testing.T) {
	for _, f := range goFiles(t, true) {
		for _, decl := range f.tree.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := f.set.Position(fn.End()).Line - f.set.Position(fn.Pos()).Line + 1
			if lines > longestFunction {
				t.Errorf("%s: %s has %d lines, at most %d are allowed", f.path, fn.Name.Name, lines, longestFunction)
			}
		}
	}
}

// TestProtocolNamesTestsThatExist: the table of the clients' call notes says which test shows each line, and names every trace.
func TestProtocolNamesTestsThatExist(t *testing.T) {
	text, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	for _, f := range goFiles(t, true) {
		for _, decl := range f.tree.Decls {
			if fun, ok := decl.(*ast.FuncDecl); ok && fun.Recv == nil && strings.HasSuffix(f.path, "_test.go") {
				tests[fun.Name.Name] = true
			}
		}
	}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz|Benchmark)\\w+)`").FindAllStringSubmatch(string(text), -1) {
		if !tests[m[1]] {
			t.Errorf("docs/protocol.md names %s, which does not exist", m[1])
		}
	}
	traces, err := filepath.Glob("../../matrixcall/mesh/testdata/*.trace")
	if err != nil || len(traces) == 0 {
		t.Fatalf("Glob = %v, %v, want traces", traces, err)
	}
	for _, trace := range traces {
		if name := strings.TrimSuffix(filepath.Base(trace), ".trace"); !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("docs/protocol.md does not name the trace %s", name)
		}
	}
}

func impurity(n ast.Node) string {
	switch n := n.(type) {
	case *ast.GoStmt:
		return "a pure package starts no goroutine"
	case *ast.ChanType:
		return "a pure package has no channels"
	case *ast.SelectorExpr:
		pkg, ok := n.X.(*ast.Ident)
		if !ok {
			return ""
		}
		if why, bad := forbiddenInPure[pkg.Name+"."+n.Sel.Name]; bad {
			return pkg.Name + "." + n.Sel.Name + ": " + why
		}
	}
	return ""
}

func testOnly(folder string) bool {
	return strings.HasPrefix(folder, "internal/") || strings.HasPrefix(folder, "test/")
}

func moduleImports(tree *ast.File) []string {
	var found []string
	for _, spec := range tree.Imports {
		path := strings.Trim(spec.Path.Value, `"`)
		if rest, ok := strings.CutPrefix(path, module+"/"); ok {
			found = append(found, rest)
		}
	}
	return found
}

// goFiles parses every Go file of the module, tests included when withTests is set.
func goFiles(t *testing.T, withTests bool) []file {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var files []file
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if name == "node_modules" || name == "build" || strings.HasPrefix(name, ".") && path != root {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || !withTests && strings.HasSuffix(name, "_test.go") {
			return nil
		}
		f, err := parseFile(root, path)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 5 {
		t.Fatalf("found %d Go files below %s: the walk is broken", len(files), root)
	}
	return files
}

func parseFile(root, path string) (file, error) {
	set := token.NewFileSet()
	source, err := os.ReadFile(path)
	if err != nil {
		return file{}, err
	}
	tree, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
	if err != nil {
		return file{}, err
	}
	relative, err := filepath.Rel(root, path)
	if err != nil {
		return file{}, err
	}
	return file{folder: filepath.ToSlash(filepath.Dir(relative)), path: relative, set: set, tree: tree}, nil
}
