package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unguarded are goroutines and callbacks that need nothing of package fault, by package and function.
var unguarded = map[string]string{
	"attest/backend Rounds.turn": "the timer calls a context's cancel, and nothing of ours",
	"internal/fault Go":          "this is how the others begin",
}

// starters are functions of libraries that run one of their arguments in another goroutine, whichever type has them.
var starters = []string{"Go", "TryGo", "AfterFunc", "DoChan"}

// TestPanicsInGoroutinesAreForPackageFault holds for every package that init, the launcher or keybroker is built of: what
// runs in another goroutine is given to package fault, or calls it itself.
func TestPanicsInGoroutinesAreForPackageFault(t *testing.T) {
	reached := map[string]string{} // folder by import path
	for _, tags := range []string{"", "plainlinux", "ego"} {
		out, err := exec.Command("go", "list", "-C", "../..", "-e", "-deps", "-tags", tags, "-f", "{{.ImportPath}}\t{{.Dir}}",
			"./init", "./cmd/keybroker").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			if name, dir, _ := strings.Cut(strings.TrimSpace(line), "\t"); strings.HasPrefix(name, module) {
				reached[strings.TrimPrefix(name, module)] = dir
			}
		}
	}
	if len(reached) < 40 {
		t.Fatalf("go list names only %d packages", len(reached))
	}
	used := map[string]bool{}
	goroutines := 0
	for name, dir := range reached {
		p, err := parse(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range p.starts() {
			goroutines++
			key := name + " " + s.function
			_, excepted := unguarded[key]
			used[key] = used[key] || excepted && !s.guarded
			if !s.guarded && !excepted {
				t.Errorf("%s: a panic of what %s starts here is not for package fault", p.set.Position(s.at), key)
			}
		}
	}
	if goroutines < 25 {
		t.Errorf("the test sees only %d goroutines", goroutines)
	}
	for key := range unguarded {
		if !used[key] {
			t.Errorf("the exception for %s is for nothing", key)
		}
	}
}

// TestGoroutinesAreSeen shows the test above what it must find and what it must not.
func TestGoroutinesAreSeen(t *testing.T) {
	const head = "package p\nimport \"" + module + "internal/fault\"\n"
	for body, guarded := range map[string]bool{
		`func f() { go g() }; func g() {}`:                                    false,
		`func f() { go func() {}() }`:                                         false,
		`func f() { go c.g() }; func (c c) g() { h() }`:                       false,
		`func f() { w.Go(func() {}) }`:                                        false,
		`func f() { time.AfterFunc(1, g) }; func g() { println() }`:           false,
		`func f() { context.AfterFunc(c, func() {}) }`:                        false,
		`func f() { group.DoChan("k", func() (any, error) { return 1, 2 }) }`: false,
		`func f() { w.Go(other.Guard(g)) }`:                                   false,
		`func f() { fault.Go(g) }`:                                            true,
		`func f() { go func() { defer fault.Exit(); g() }() }`:                true,
		`func f() { go c.g() }; func (c c) g() { _ = fault.Try(h) }`:          true,
		`func f() { w.Go(fault.Guard(g)) }`:                                   true,
		`func f() { time.AfterFunc(1, fault.Guard(func() {})) }`:              true,
	} {
		p := &code{set: token.NewFileSet()}
		file, err := parser.ParseFile(p.set, "p.go", head+strings.ReplaceAll(body, "; func", "\nfunc"), parser.SkipObjectResolution)
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		p.files = append(p.files, file)
		if found := p.starts(); len(found) != 1 || found[0].guarded != guarded {
			t.Errorf("%s: %+v, want guarded %v", body, found, guarded)
		}
	}
}

// code is the source of a package, for all build tags.
type code struct {
	set   *token.FileSet
	files []*ast.File
}

func parse(dir string) (*code, error) {
	p := &code{set: token.NewFileSet()}
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(p.set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, file)
	}
	return p, nil
}

// start is a place where something begins to run in another goroutine.
type start struct {
	at       token.Pos
	function string
	guarded  bool
}

func (p *code) starts() (found []start) {
	for _, file := range p.files {
		for _, d := range file.Decls {
			ast.Inspect(d, func(n ast.Node) bool {
				var begun []ast.Expr
				switch n := n.(type) {
				case *ast.GoStmt:
					begun = []ast.Expr{n.Call.Fun}
				case *ast.CallExpr:
					s, ok := n.Fun.(*ast.SelectorExpr)
					if !ok {
						return true
					}
					if s.Sel.Name == "Go" && ofFault(s) {
						found = append(found, start{n.Pos(), nameOf(d), true})
						return true
					}
					for _, name := range starters {
						if s.Sel.Name == name {
							begun = n.Args
						}
					}
				}
				if begun != nil {
					guarded := false
					for _, e := range begun {
						guarded = guarded || p.guards(e)
					}
					found = append(found, start{n.Pos(), nameOf(d), guarded})
				}
				return true
			})
		}
	}
	return found
}

// guards reports whether an expression calls package fault, or is a function or method of this package that does.
func (p *code) guards(e ast.Expr) bool {
	name := ""
	switch e := e.(type) {
	case *ast.Ident:
		name = e.Name
	case *ast.SelectorExpr:
		name = e.Sel.Name
	default:
		return mentions(e)
	}
	declared, all := 0, true
	for _, file := range p.files {
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == name {
				declared++
				all = all && mentions(f)
			}
		}
	}
	return declared > 0 && all
}

// mentions reports whether there is a call to package fault below a node.
func mentions(n ast.Node) (found bool) {
	ast.Inspect(n, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		found = found || ok && ofFault(call.Fun)
		return !found
	})
	return found
}

// ofFault reports whether an expression selects something of package fault, which is never imported by another name.
func ofFault(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "fault"
}

func nameOf(d ast.Decl) string {
	f, ok := d.(*ast.FuncDecl)
	if !ok {
		return "a variable"
	}
	if f.Recv == nil {
		return f.Name.Name
	}
	receiver := f.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	if name, ok := receiver.(*ast.Ident); ok {
		return name.Name + "." + f.Name.Name
	}
	return f.Name.Name
}
