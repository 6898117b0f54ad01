package config

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

// decodeStrict decodes text into v and reports every unknown and every repeated key, not only the first one,
// with its path. encoding/json alone stops at the first unknown key and takes the last of two equal ones.
func decodeStrict(text []byte, v any) Problems {
	dec := json.NewDecoder(bytes.NewReader(text))
	var problems Problems
	if err := walk(dec, reflect.TypeOf(v), "", &problems); err != nil {
		return append(problems, Problem{"(file)", "is not JSON: " + err.Error(), ""})
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		problems = append(problems, Problem{"(file)", "has something after the closing brace", ""})
	}
	if len(problems) > 0 {
		return problems
	}
	if err := json.Unmarshal(text, v); err != nil {
		key, said := "(file)", err.Error()
		var typed *json.UnmarshalTypeError
		if errors.As(err, &typed) {
			key, said = typed.Field, fmt.Sprintf("is a JSON %s, want %s", typed.Value, typed.Type)
		}
		return Problems{{key, said, ""}}
	}
	return nil
}

// walk reads one JSON value and compares its keys with the fields of t; a nil t means that any value is right.
func walk(dec *json.Decoder, t reflect.Type, at string, problems *Problems) error {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && implementsDecoder(t) {
		t = nil
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	delim, _ := token.(json.Delim)
	switch delim {
	case '{':
		var fields map[string]reflect.Type
		var elem reflect.Type // of a map with any keys
		if t != nil && t.Kind() == reflect.Struct {
			fields = jsonFields(t)
		} else if t != nil && t.Kind() == reflect.Map {
			elem = t.Elem()
		}
		var seen []string
		for dec.More() {
			token, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := token.(string)
			key := strings.TrimPrefix(at+"."+name, ".")
			field, ok := fields[name]
			if fields == nil {
				field = elem
			} else if !ok {
				*problems = append(*problems, Problem{key, "is not a known key", known(fields)})
			}
			if slices.Contains(seen, name) {
				*problems = append(*problems, Problem{key, "is given twice", "it once"})
			}
			seen = append(seen, name)
			if err := walk(dec, field, key, problems); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	case '[':
		var elem reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			elem = t.Elem()
		}
		for i := 0; dec.More(); i++ {
			if err := walk(dec, elem, fmt.Sprintf("%s[%d]", at, i), problems); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	}
	return err
}

func implementsDecoder(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && f.Anonymous && f.Type.Kind() == reflect.Struct:
			for k, v := range jsonFields(f.Type) {
				fields[k] = v
			}
		case name == "":
			fields[f.Name] = f.Type
		default:
			fields[name] = f.Type
		}
	}
	return fields
}

// known says which keys there are.
func known(fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return "one of " + strings.Join(names, ", ")
}
