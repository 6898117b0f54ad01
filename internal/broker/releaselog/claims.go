package releaselog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sesame-init/sesame/attest"
)

// Claims are what the evidence of the peer claims. In JSON they are one object: the type, then the members of Record, then
// the others.
type Claims struct {
	Type string
	// Record is a JSON object with what the log keeps for this type of evidence ([attest.Details]). Byte strings are
	// hexadecimal.
	Record json.RawMessage
	common
}

// common are the members that claims of every type have.
type common struct {
	Debug      bool     `json:"debug,omitempty"`
	TCB        string   `json:"tcb,omitempty"` // Intel's name of the status
	Advisories []string `json:"advisories,omitempty"`
	TCBDate    string   `json:"tcb_date,omitempty"`
	Evaluation uint32   `json:"evaluation,omitempty"`
}

// commonNames are the names of common's members. They must follow those of the record.
var commonNames = []string{"debug", "tcb", "advisories", "tcb_date", "evaluation"}

// ClaimsOf takes what the log keeps from claims; nil if there are none.
func ClaimsOf(c attest.Claims) *Claims {
	d := c.Details()
	if d == nil {
		return nil
	}
	record, err := encodeJSON(d.Record())
	if err != nil { // a record has strings, numbers and lists of them
		panic(err)
	}
	out := &Claims{Type: string(c.Type), Record: record, common: common{Debug: d.Debug(), Evaluation: c.TCB.EvaluationNumber}}
	if d.Rated() {
		out.TCB = c.TCB.StatusName()
	}
	if !c.TCB.Date.IsZero() {
		out.TCBDate = Timestamp(c.TCB.Date)
	}
	for i, a := range c.TCB.Advisories {
		if i == maxAdvisories {
			break
		}
		out.Advisories = append(out.Advisories, printable(a, maxShort))
	}
	return out
}

// MarshalJSON implements [json.Marshaler].
func (c *Claims) MarshalJSON() ([]byte, error) {
	head, err := encodeJSON(struct {
		Type string `json:"type"`
	}{c.Type})
	if err != nil {
		return nil, err
	}
	tail, err := encodeJSON(c.common)
	if err != nil {
		return nil, err
	}
	return joinObjects(head, c.Record, tail), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (c *Claims) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("claims are no JSON object")
	}
	var names []string
	var record, rest [][]byte
	*c = Claims{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := t.(string) // of a member: the decoder allows nothing else
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		if slices.Contains(names, name) {
			return fmt.Errorf("claims have two members %.40q", name)
		}
		names = append(names, name)
		if err := checkForm(value); err != nil {
			return fmt.Errorf("claims: %.40q: %w", name, err)
		}
		if name == "type" {
			if err := json.Unmarshal(value, &c.Type); err != nil {
				return fmt.Errorf("type of claims: %w", err)
			}
			continue
		}
		key, err := encodeJSON(name)
		if err != nil {
			return err
		}
		member := slices.Concat([]byte("{"), key, []byte(":"), value, []byte("}"))
		if slices.Contains(commonNames, name) {
			rest = append(rest, member)
		} else {
			record = append(record, member)
		}
	}
	if len(record) > 0 {
		c.Record = joinObjects(record...)
	}
	return json.Unmarshal(joinObjects(rest...), &c.common)
}

// checkForm makes sure that a value is as encodeJSON writes it, so that no two texts mean the same.
func checkForm(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return err
	}
	if again, err := encodeJSON(value); err != nil || !bytes.Equal(again, text) {
		return errors.New("not in its canonical form")
	}
	return nil
}

// joinObjects makes one JSON object of several, each without space around it.
func joinObjects(objects ...[]byte) []byte {
	out := []byte("{")
	for _, object := range objects {
		if len(object) <= len("{}") {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, object[1:len(object)-1]...)
	}
	return append(out, '}')
}

// encodeJSON is [json.Marshal] without escapes for HTML.
func encodeJSON(value any) ([]byte, error) {
	var b bytes.Buffer
	j := json.NewEncoder(&b)
	j.SetEscapeHTML(false)
	if err := j.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
