// Package strictjson reads JSON that must mean one thing only. encoding/json takes the last of two equal members, folds the
// case of names, and its decoder leaves what follows a value alone, so that two readers can understand one text differently.
//
// There are two modes. [Decode] is for our own files: every member must be known. [DecodeForeign] is for the files and messages
// of others, which may grow members: unknown ones pass. In both, a member that is given twice, a known one in another case,
// and anything behind the value are errors.
//
// All faults of a text are reported together, each with its key and its place.
package strictjson

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// maxDepth bounds how deep values may be nested.
const maxDepth = 64

// A Fault is one thing that is wrong with a text.
type Fault struct {
	Key          string // path of the member: "grpc_ratls.servers[0]"; "" for the text as a whole
	Line, Column int    // both from 1, the column in bytes; 0 if unknown
	Text         string // what is wrong
	Write        string // what to write instead; may be empty
}

// String is the fault on one line.
func (f Fault) String() string {
	var b strings.Builder
	if f.Line > 0 {
		fmt.Fprintf(&b, "line %d, column %d: ", f.Line, f.Column)
	}
	if f.Key != "" {
		b.WriteString(f.Key + " ")
	}
	b.WriteString(f.Text)
	if f.Write != "" {
		b.WriteString("; write " + f.Write)
	}
	return b.String()
}

// Faults is everything that is wrong with a text, as an error.
type Faults []Fault

// Error implements error.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "; ")
}

// Decode reads one JSON value into v, a pointer, whose type must know every member. The error is of type [Faults]; v is
// then unchanged or half filled in.
func Decode(text []byte, v any) error { return decode(text, v, false) }

// DecodeForeign is [Decode] for text of others: members that v does not know pass.
func DecodeForeign(text []byte, v any) error { return decode(text, v, true) }

func decode(text []byte, v any, foreign bool) error {
	w := &walker{text: text, decoder: json.NewDecoder(bytes.NewReader(text)), foreign: foreign}
	if err := w.value(reflect.TypeOf(v), "", 0); err != nil {
		offset := int(w.decoder.InputOffset())
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			offset = int(syntax.Offset)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err, offset = errors.New("it ends too early"), len(text)
		}
		w.fault("", offset, "is not JSON: "+err.Error(), "")
		return w.faults
	}
	end := int(w.decoder.InputOffset())
	if _, err := w.decoder.Token(); !errors.Is(err, io.EOF) {
		rest := bytes.TrimLeft(text[end:], " \t\r\n")
		w.fault("", len(text)-len(rest), "has something after its end", "nothing there")
	}
	if len(w.faults) > 0 {
		return w.faults
	}
	if err := json.Unmarshal(text, v); err != nil {
		var typed *json.UnmarshalTypeError
		if errors.As(err, &typed) {
			w.fault(typed.Field, int(typed.Offset), fmt.Sprintf("is a JSON %s, want %s", typed.Value, kind(typed.Type)), "")
		} else {
			w.fault("", -1, err.Error(), "")
		}
		return w.faults
	}
	return nil
}

// kind is a type in the words of JSON.
func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that fits"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return t.String()
}

// walker reads a text once and compares its members with a type.
type walker struct {
	text    []byte
	decoder *json.Decoder
	foreign bool
	faults  Faults
}

// fault notes a fault at an offset in the text, a negative one if it is unknown.
func (w *walker) fault(key string, offset int, text, write string) {
	f := Fault{Key: key, Text: text, Write: write}
	if offset >= 0 && offset <= len(w.text) {
		before := w.text[:offset]
		f.Line = 1 + bytes.Count(before, []byte("\n"))
		f.Column = 1 + offset - (1 + bytes.LastIndexByte(before, '\n'))
	}
	w.faults = append(w.faults, f)
}

// value reads one value; a nil t means that any value is right.
func (w *walker) value(t reflect.Type, at string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	itself := t
	if t != nil && decodesItself(t) {
		t = nil
	}
	before := int(w.decoder.InputOffset())
	token, err := w.decoder.Token()
	if err != nil {
		return err
	}
	if text, ok := token.(string); ok && itself != t {
		if err := readText(itself, text); err != nil {
			w.fault(at, before+bytes.IndexByte(w.text[before:], '"'), err.Error(), "")
		}
	}
	switch token {
	case nil:
		list := t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) // empty ones are written so
		if !w.foreign && !list {                                                   // it would pass for a member that is not there
			w.fault(at, int(w.decoder.InputOffset()), "is null", "a value, or leave it out")
		}
	case json.Delim('{'):
		return w.object(t, at, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for i := 0; w.decoder.More(); i++ {
			if err := w.value(elem, fmt.Sprintf("%s[%d]", at, i), depth+1); err != nil {
				return err
			}
		}
		_, err = w.decoder.Token()
	}
	return err
}

// object reads the members of an object whose brace has been read, and its closing brace.
func (w *walker) object(t reflect.Type, at string, depth int) error {
	var fields map[string]reflect.Type // nil: members with any names
	var elem reflect.Type
	switch {
	case t == nil:
	case t.Kind() == reflect.Struct:
		fields = fieldsOf(t)
	case t.Kind() == reflect.Map:
		elem = t.Elem()
	}
	seen := map[string]bool{}
	for w.decoder.More() {
		before := int(w.decoder.InputOffset())
		token, err := w.decoder.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		key := strings.TrimPrefix(at+"."+name, ".")
		place := before + max(0, bytes.IndexByte(w.text[before:], '"'))
		member := elem
		if fields != nil {
			var ok bool
			if member, ok = fields[name]; !ok {
				w.unknown(key, name, place, fields)
			}
		}
		if seen[name] {
			w.fault(key, place, "is given twice", "it once")
		}
		seen[name] = true
		if err := w.value(member, key, depth+1); err != nil {
			return err
		}
	}
	_, err := w.decoder.Token()
	return err
}

func (w *walker) unknown(key, name string, place int, fields map[string]reflect.Type) {
	for known := range fields {
		if strings.EqualFold(known, name) {
			w.fault(key, place, "is written in another case than the known key", fmt.Sprintf("%q", known))
			return
		}
	}
	if !w.foreign {
		w.fault(key, place, "is not a known key", oneOf(fields))
	}
}

func decodesItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// readText tries a text on a type that reads itself. The error of [json.Unmarshal] would not say where it is.
func readText(t reflect.Type, text string) error {
	v := reflect.New(t).Interface()
	if _, ok := v.(json.Unmarshaler); ok {
		return nil
	}
	if v, ok := v.(encoding.TextUnmarshaler); ok {
		return v.UnmarshalText([]byte(text))
	}
	return nil
}

// fieldsOf are the members that encoding/json reads into a struct, by name.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			for k, v := range fieldsOf(f.Type) {
				fields[k] = v
			}
		case !f.IsExported():
		case name == "":
			fields[f.Name] = f.Type
		default:
			fields[name] = f.Type
		}
	}
	return fields
}

// oneOf says which members there are.
func oneOf(fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return "one of " + strings.Join(names, ", ")
}
