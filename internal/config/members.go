package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/strictjson"
)

// members are fields that one JSON object is read into, of several structs.
type members struct {
	fields []reflect.StructField
	values []reflect.Value // where each is kept
}

// add takes the JSON members of the struct that v points to, those of the names given or all.
func (m *members) add(v any, names ...string) {
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		f := s.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		m.fields = append(m.fields, reflect.StructField{Name: f.Name, Type: f.Type, Tag: f.Tag})
		m.values = append(m.values, s.Field(i))
	}
}

// addBlocks takes a member for each backend, a pointer to its block, and returns what puts the blocks that were read into a
// map.
func (m *members) addBlocks(blocks map[string]kind.Block) (keep func() map[string]kind.Block) {
	kinds := Backends()
	first := len(m.values)
	for i, k := range kinds {
		t := reflect.TypeOf(k.New())
		m.fields = append(m.fields, reflect.StructField{
			Name: fmt.Sprintf("Block%d", i), Type: t, Tag: reflect.StructTag(`json:"` + k.Key() + `,omitempty"`),
		})
		v := reflect.New(t).Elem()
		if b := blocks[k.Name]; b != nil {
			v.Set(reflect.ValueOf(b))
		}
		m.values = append(m.values, v)
	}
	return func() map[string]kind.Block {
		blocks := map[string]kind.Block{}
		for i, k := range kinds {
			if v := m.values[first+i]; !v.IsNil() {
				blocks[k.Name] = v.Interface().(kind.Block)
			}
		}
		return blocks
	}
}

// object is one struct with all the members.
func (m *members) object() reflect.Value {
	whole := reflect.New(reflect.StructOf(m.fields))
	for i, v := range m.values {
		whole.Elem().Field(i).Set(v)
	}
	return whole
}

// decode reads text strictly into the members and reports everything that is wrong with its form.
func (m *members) decode(text []byte) (problems Problems) {
	whole := m.object()
	var faults strictjson.Faults
	if err := strictjson.Decode(text, whole.Interface()); !errors.As(err, &faults) {
		for i, v := range m.values {
			v.Set(whole.Elem().Field(i))
		}
		return nil
	}
	for _, f := range faults {
		if f.Key == "" {
			f.Key = "(file)"
		}
		problems.Add(f.Key, f.Text, f.Write)
	}
	return problems
}

// decodeOwn reads a config in Sesame's own form.
func decodeOwn(text []byte) (*Config, Problems) {
	c := &Config{}
	var m members
	m.add(c)
	keep := m.addBlocks(nil)
	problems := m.decode(text)
	c.Blocks = keep()
	return c, problems
}

// ReadBlocks reads an object with blocks alone: {"maa": {…}}. Errors are [Problems].
func ReadBlocks(text []byte) (map[string]kind.Block, error) {
	var m members
	keep := m.addBlocks(nil)
	if problems := m.decode(text); len(problems) > 0 {
		return nil, problems
	}
	return keep(), nil
}

// MarshalJSON implements [json.Marshaler].
func (c *Config) MarshalJSON() ([]byte, error) {
	var m members
	m.add(c)
	m.addBlocks(c.Blocks)
	return json.Marshal(m.object().Interface())
}
