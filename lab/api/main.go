// Command api lists the exported identifiers that other modules can import: functions, types, methods, fields and
// constants, variables included, of every package outside internal/, lab/ and cmd/, generated files left out.
//
//	api            prints the list, one identifier a line, and the number of them
//	api -w FILE    writes the list to a file
//	api -check FILE  fails if the list differs from the file, and prints how
//
// The checked-in list, docs/api.txt, makes every change of the public API visible in review.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "api: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("api", flag.ContinueOnError)
	write := flags.String("w", "", "`file` to write the list to")
	check := flags.String("check", "", "`file` that the list must be equal to")
	root := flags.String("root", ".", "`folder` of the module")
	if err := flags.Parse(args); err != nil {
		return err
	}
	names, err := list(*root)
	if err != nil {
		return err
	}
	text := []byte(strings.Join(names, "\n") + "\n")
	switch {
	case *write != "":
		return os.WriteFile(*write, text, 0o644)
	case *check != "":
		return compare(*check, names)
	}
	if _, err := out.Write(text); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d exported identifiers\n", len(names))
	return err
}

func compare(file string, names []string) error {
	kept, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var was []string
	for s := bufio.NewScanner(bytes.NewReader(kept)); s.Scan(); {
		was = append(was, s.Text())
	}
	var differs []string
	for _, n := range names {
		if !slices.Contains(was, n) {
			differs = append(differs, "+ "+n)
		}
	}
	for _, n := range was {
		if !slices.Contains(names, n) {
			differs = append(differs, "- "+n)
		}
	}
	if len(differs) == 0 {
		return nil
	}
	return errors.New("the public API differs from " + file + "; if that is intended, run make api:\n" + strings.Join(differs, "\n"))
}

// list names what is exported below a folder, sorted: "attest/policy.Policy.Validate".
func list(root string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		local, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		local = filepath.ToSlash(local)
		if d.IsDir() {
			if local != "." && private(local, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(local, ".go") || strings.HasSuffix(local, "_test.go") {
			return nil
		}
		found, err := exported(path)
		for _, n := range found {
			names = append(names, filepath.ToSlash(filepath.Dir(local))+"."+n)
		}
		return err
	})
	slices.Sort(names)
	return slices.Compact(names), err // a file for each platform may declare the same name
}

func private(local, name string) bool {
	return local == "lab" || local == "cmd" || name == "internal" || name == "testdata" ||
		strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || local == "build" || local == "bin"
}

// exported names what one file exports. A program exports nothing, nor does a generated file.
func exported(path string) ([]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	if file.Name.Name == "main" || ast.IsGenerated(file) {
		return nil, nil
	}
	var names []string
	add := func(parts ...string) {
		for _, p := range parts {
			if !ast.IsExported(p) {
				return
			}
		}
		names = append(names, strings.Join(parts, "."))
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				add(d.Name.Name)
			} else {
				add(receiver(d.Recv.List[0].Type), d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.ValueSpec:
					for _, n := range s.Names {
						add(n.Name)
					}
				case *ast.TypeSpec:
					add(s.Name.Name)
					for _, member := range members(s.Type) {
						add(s.Name.Name, member)
					}
				}
			}
		}
	}
	return names, nil
}

func receiver(t ast.Expr) string {
	switch t := t.(type) {
	case *ast.StarExpr:
		return receiver(t.X)
	case *ast.IndexExpr:
		return receiver(t.X)
	case *ast.IndexListExpr:
		return receiver(t.X)
	case *ast.Ident:
		return t.Name
	}
	return ""
}

// members are the fields of a struct and the methods of an interface.
func members(t ast.Expr) (names []string) {
	var fields *ast.FieldList
	switch t := t.(type) {
	case *ast.StructType:
		fields = t.Fields
	case *ast.InterfaceType:
		fields = t.Methods
	default:
		return nil
	}
	for _, f := range fields.List {
		for _, n := range f.Names {
			names = append(names, n.Name)
		}
	}
	return names
}
