package config

import (
	"errors"

	"github.com/sesame-init/sesame/internal/strictjson"
)

// decodeStrict decodes text into v and reports everything that is wrong with its form.
func decodeStrict(text []byte, v any) (problems Problems) {
	var faults strictjson.Faults
	if err := strictjson.Decode(text, v); !errors.As(err, &faults) {
		return nil
	}
	for _, f := range faults {
		if f.Key == "" {
			f.Key = "(file)"
		}
		problems = append(problems, Problem{f.Key, f.Text, f.Write})
	}
	return problems
}
