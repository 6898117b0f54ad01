package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

type inner struct {
	Number *uint16           `json:"number,omitempty"`
	Words  map[string]string `json:"words,omitempty"`
}

type document struct {
	Name  string          `json:"name"`
	Inner []inner         `json:"inner,omitempty"`
	Raw   json.RawMessage `json:"raw,omitempty"`
	Plain bool
	Time  time.Time // reads itself from a JSON text
	Color *color    // reads itself from its text
}

type color string

func (c *color) UnmarshalText(text []byte) error {
	if string(text) != "red" {
		return fmt.Errorf("is %q, want red", text)
	}
	*c = color(text)
	return nil
}

func TestFaultsHaveKeyAndPlace(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
		foreign          string // what the foreign mode says; "" for nothing
	}{
		{"good", `{"name": "n", "inner": [{"number": 3, "words": {"any": "x"}}], "raw": {"a": 1}, "Plain": true}`, "", ""},
		{"unknown", "{\n  \"nam\": \"n\"\n}", `line 2, column 3: nam is not a known key; write one of Color, Plain, Time, inner, name, raw`, ""},
		{"unknown below", `{"inner": [{}, {"x": {"y": 1}}]}`,
			`line 1, column 17: inner[1].x is not a known key; write one of number, words`, ""},
		{"another case", `{"Name": "n"}`, `line 1, column 2: Name is written in another case than the known key; write "name"`,
			`line 1, column 2: Name is written in another case than the known key; write "name"`},
		{"twice", `{"name": "a", "name": "b"}`, "line 1, column 15: name is given twice; write it once",
			"line 1, column 15: name is given twice; write it once"},
		{"twice by an escape", `{"name": "a", "n\u0061me": "b"}`, "line 1, column 15: name is given twice; write it once",
			"line 1, column 15: name is given twice; write it once"},
		{"twice in a map", `{"inner": [{"words": {"a": "1", "a": "2"}}]}`,
			"line 1, column 33: inner[0].words.a is given twice; write it once",
			"line 1, column 33: inner[0].words.a is given twice; write it once"},
		{"twice where any value is right", `{"raw": {"a": 1, "a": 2}}`, "line 1, column 18: raw.a is given twice; write it once",
			"line 1, column 18: raw.a is given twice; write it once"},
		{"text behind", "{\"name\": \"n\"}\n x", "line 2, column 2: has something after its end; write nothing there",
			"line 2, column 2: has something after its end; write nothing there"},
		{"another value behind", `{} {}`, "line 1, column 4: has something after its end; write nothing there",
			"line 1, column 4: has something after its end; write nothing there"},
		{"all at once", `{"a": 1, "b": 2}`, "line 1, column 2: a is not a known key; write one of Color, Plain, Time, inner, name, raw; " +
			"line 1, column 10: b is not a known key; write one of Color, Plain, Time, inner, name, raw", ""},
		{"cut off", `{"name": "n"`, "line 1, column 13: is not JSON: it ends too early", "line 1, column 13: is not JSON: it ends too early"},
		{"empty", "", "line 1, column 1: is not JSON: it ends too early", "line 1, column 1: is not JSON: it ends too early"},
		{"another type", `{"name": 3}`, "line 1, column 11: name is a JSON number, want a string",
			"line 1, column 11: name is a JSON number, want a string"},
		{"a text that a type refuses", "{\n \"Color\": \t\"bl\\u0075e\", \"name\": \"n\", \"nam\": 1}", "line 2, column 12: Color is \"blue\", want red; " +
			"line 2, column 38: nam is not a known key; write one of Color, Plain, Time, inner, name, raw", `line 2, column 12: Color is "blue", want red`},
		{"a text that a type takes", `{"Color": "red", "Time": "2026-01-02T03:04:05Z"}`, "", ""},
		{"too large", `{"inner": [{"number": 65536}]}`, "line 1, column 28: inner.number is a JSON number 65536, want a whole number that fits",
			"line 1, column 28: inner.number is a JSON number 65536, want a whole number that fits"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for mode, want := range map[string]string{"ours": c.want, "foreign": c.foreign} {
				read := Decode
				if mode == "foreign" {
					read = DecodeForeign
				}
				var d document
				err := read([]byte(c.text), &d)
				var faults Faults
				if err != nil && !errors.As(err, &faults) {
					t.Fatalf("%s: error is a %T", mode, err)
				}
				if got := faults.Error(); got != want {
					t.Errorf("%s: faults are %q, want %q", mode, got, want)
				}
			}
		})
	}
}

func TestNestingIsBounded(t *testing.T) {
	var v any
	if err := Decode([]byte(strings.Repeat("[", 1<<20)), &v); err == nil || !strings.Contains(err.Error(), "nested") {
		t.Errorf("error is %v", err)
	}
	if err := Decode([]byte(strings.Repeat("[", maxDepth)+strings.Repeat("]", maxDepth)), &v); err != nil {
		t.Error(err)
	}
}

// FuzzDecode checks that what is taken is what encoding/json makes of the text, and that writing it again and reading that
// gives the same value.
func FuzzDecode(f *testing.F) {
	for _, text := range []string{`{"name": "n", "inner": [{"number": 3}], "raw": [1, {}]}`, `{"Name":1}`, `{"name":"a","name":"b"}`, `[{`, `{} x`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var ours, foreign, plain document
		if Decode(text, &ours) != nil {
			return
		}
		if err := DecodeForeign(text, &foreign); err != nil {
			t.Fatalf("taken as ours, refused as foreign: %v", err)
		}
		if err := json.Unmarshal(text, &plain); err != nil {
			t.Fatalf("taken, but encoding/json says %v", err)
		}
		if !reflect.DeepEqual(ours, foreign) || !reflect.DeepEqual(ours, plain) {
			t.Errorf("%+v, %+v and %+v of one text", ours, foreign, plain)
		}
	})
}

func TestNullIsNotTheSameAsAbsent(t *testing.T) {
	var v struct {
		Limit *int `json:"limit"`
	}
	if err := Decode([]byte(`{"limit":null}`), &v); err == nil || !strings.Contains(err.Error(), "is null") {
		t.Errorf("error is %v", err)
	}
	if err := DecodeForeign([]byte(`{"limit":null,"more":null}`), &v); err != nil {
		t.Error(err)
	}
}
