package policy

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// A Fault is one thing that is wrong with a policy.
type Fault struct {
	Line int    `json:"line,omitempty"` // from 1; 0 where it is about the whole file
	Key  string `json:"key,omitempty"`  // "workloads.inference.versions[0].sgx[0].mr_enclave"
	Text string `json:"text"`
}

func (f Fault) String() string {
	s := f.Text
	if f.Key != "" {
		s = f.Key + ": " + s
	}
	if f.Line != 0 {
		s = fmt.Sprintf("line %d: %s", f.Line, s)
	}
	return s
}

// Faults are all that is wrong with a policy, in the order of the file.
type Faults []Fault

// Error gives one line for each.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// document reads YAML strictly. The library alone stops at the first fault, takes null for "not named", turns numbers
// into strings, and follows aliases.
type document struct {
	lines  map[string]int // key to line
	faults Faults
}

// decode reads text into v, or says all that is wrong with it.
func (d *document) decode(text []byte, v any) {
	d.lines = map[string]int{}
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.failed(0, "", err)
		return
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		d.fault("", "is not one YAML document")
		return
	}
	d.walk(file.Docs[0].Body, reflect.TypeOf(v).Elem(), "")
	if len(d.faults) > 0 {
		return
	}
	if err := yaml.NodeToValue(file.Docs[0].Body, v, yaml.Strict()); err != nil {
		d.failed(0, "", err)
	}
}

// fault notes a fault of a key, with the line of the key or of the nearest one around it.
func (d *document) fault(key, format string, args ...any) {
	at := key
	for d.lines[at] == 0 && at != "" {
		at = at[:max(strings.LastIndexAny(at, ".["), 0)]
	}
	d.faults = append(d.faults, Fault{Line: d.lines[at], Key: key, Text: fmt.Sprintf(format, args...)})
}

// written reports whether the text has a key.
func (d *document) written(key string) bool { return d.lines[key] != 0 }

// failed notes an error of the library.
func (d *document) failed(line int, key string, err error) {
	var detailed yaml.Error
	text := err.Error()
	if errors.As(err, &detailed) {
		text = detailed.GetMessage()
		if t := detailed.GetToken(); line == 0 && t != nil && t.Position != nil {
			line = t.Position.Line
		}
	}
	d.faults = append(d.faults, Fault{Line: line, Key: key, Text: text})
}

// walk compares a node with the type that it is to fill.
func (d *document) walk(n ast.Node, t reflect.Type, key string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	line := lineOf(n)
	if key != "" && d.lines[key] == 0 {
		d.lines[key] = line
	}
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.fault(key, "anchors, aliases and tags are not read: write it out")
		return
	case *ast.NullNode:
		d.fault(key, "has no value")
		return
	}
	switch {
	case isLeaf(t):
		d.leaf(n, t, key, line)
	case t.Kind() == reflect.Struct || t.Kind() == reflect.Map:
		d.mapping(n, t, key)
	case t.Kind() == reflect.Slice:
		s, ok := n.(*ast.SequenceNode)
		if !ok {
			d.fault(key, "is not a list")
			return
		}
		for i, value := range s.Values {
			d.walk(value, t.Elem(), fmt.Sprintf("%s[%d]", key, i))
		}
	default:
		d.leaf(n, t, key, line)
	}
}

func (d *document) mapping(n ast.Node, t reflect.Type, key string) {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		d.fault(key, "is not a list of keys and values")
		return
	}
	var fields map[string]reflect.Type
	if t.Kind() == reflect.Struct {
		fields = yamlFields(t)
	}
	var seen []string
	for _, pair := range pairs {
		name := ""
		switch k := pair.Key.(type) {
		case *ast.StringNode:
			name = k.Value
		case *ast.IntegerNode:
			name = k.Token.Value
		}
		at := strings.TrimPrefix(key+"."+name, ".")
		if d.lines[at] == 0 {
			d.lines[at] = lineOf(pair.Key)
		}
		var value reflect.Type
		switch {
		case name == "":
			d.faults = append(d.faults, Fault{lineOf(pair.Key), key, "a key is not a word"})
			continue
		case slices.Contains(seen, name):
			d.faults = append(d.faults, Fault{lineOf(pair.Key), at, "stands there twice"})
			continue
		case fields == nil:
			value = t.Elem()
		default:
			var ok bool
			if value, ok = fields[name]; !ok {
				d.fault(at, "is not a known key, want one of %s", strings.Join(sortedKeys(fields), ", "))
				continue
			}
		}
		seen = append(seen, name)
		d.walk(pair.Value, value, at)
	}
}

// leaf decodes one value for its errors, and refuses those that would be converted on the way.
func (d *document) leaf(n ast.Node, t reflect.Type, key string, line int) {
	_, isText := n.(*ast.StringNode)
	_, isBlock := n.(*ast.LiteralNode)
	_, isNumber := n.(*ast.IntegerNode)
	_, isBool := n.(*ast.BoolNode)
	_, isFloat := n.(*ast.FloatNode)
	want := ""
	switch {
	case !isText && !isBlock && !isNumber && !isBool && !isFloat:
		want = "a single value"
	case isLeaf(t):
	case t.Kind() == reflect.String && !isText && !isBlock:
		want = "text: write it in quotes"
	case t.Kind() == reflect.Bool && !isBool:
		want = "true or false"
	case t.Kind() != reflect.String && t.Kind() != reflect.Bool && !isNumber:
		want = "a whole number"
	}
	if want != "" {
		d.fault(key, "is not %s", want)
		return
	}
	if err := yaml.NodeToValue(n, reflect.New(t).Interface()); err != nil {
		d.failed(line, key, err)
	}
}

func lineOf(n ast.Node) int {
	if m, ok := n.(*ast.MappingValueNode); ok {
		n = m.Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

// isLeaf reports whether a type reads its own text.
func isLeaf(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[yaml.BytesUnmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func yamlFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case options == "inline":
			for k, v := range yamlFields(f.Type) {
				fields[k] = v
			}
		case name != "":
			fields[name] = f.Type
		}
	}
	return fields
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
