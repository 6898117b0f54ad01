package maatest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/internal/strictjson"
)

// A ReleasePolicy is a release policy in Key Vault's grammar, version 1.0.0 ("Azure Key Vault secure key release policy
// grammar"): any of several authorities, each with conditions on the claims of its tokens.
type ReleasePolicy struct{ anyOf []rule }

// rule is an authority's conditions, a group of conditions, or one condition.
type rule struct {
	authority    string
	allOf, anyOf []rule
	claim        string
	operator     string
	value        any
}

var operators = map[string]func(got, want any) bool{
	"equals":          equal,
	"notEquals":       func(got, want any) bool { return !equal(got, want) },
	"less":            func(got, want any) bool { return ordered(got, want, func(a, b float64) bool { return a < b }) },
	"lessOrEquals":    func(got, want any) bool { return ordered(got, want, func(a, b float64) bool { return a <= b }) },
	"greater":         func(got, want any) bool { return ordered(got, want, func(a, b float64) bool { return a > b }) },
	"greaterOrEquals": func(got, want any) bool { return ordered(got, want, func(a, b float64) bool { return a >= b }) },
	"exists":          func(_, want any) bool { return want == true },
}

func equal(got, want any) bool {
	if b, ok := got.(bool); ok { // the service takes "true" for true
		if text, ok := want.(string); ok {
			return strconv.FormatBool(b) == text
		}
	}
	return got == want
}

func ordered(got, want any, is func(a, b float64) bool) bool {
	a, ok := got.(float64)
	b, ok2 := want.(float64)
	return ok && ok2 && is(a, b)
}

// ParseReleasePolicy reads a policy as the vault does when a key is created.
func ParseReleasePolicy(text []byte) (*ReleasePolicy, error) {
	var p struct {
		Version string            `json:"version"`
		AnyOf   []json.RawMessage `json:"anyOf"`
	}
	if err := strictjson.Decode(text, &p); err != nil {
		return nil, fmt.Errorf("release policy: %w", err)
	}
	if p.Version != "1.0.0" || len(p.AnyOf) == 0 {
		return nil, fmt.Errorf("release policy: version %q with %d authorities", p.Version, len(p.AnyOf))
	}
	var out ReleasePolicy
	for _, raw := range p.AnyOf {
		r, err := parseRule(raw, true)
		if err != nil {
			return nil, fmt.Errorf("release policy: %w", err)
		}
		out.anyOf = append(out.anyOf, r)
	}
	return &out, nil
}

func parseRule(raw json.RawMessage, top bool) (r rule, err error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return r, err
	}
	for name, value := range members {
		switch {
		case name == "authority" && top:
			err = json.Unmarshal(value, &r.authority)
		case name == "claim" && !top:
			err = json.Unmarshal(value, &r.claim)
		case name == "allOf":
			r.allOf, err = parseRules(value)
		case name == "anyOf":
			r.anyOf, err = parseRules(value)
		case operators[name] != nil && !top && r.operator == "":
			r.operator = name
			err = json.Unmarshal(value, &r.value)
		default:
			err = fmt.Errorf("unexpected %q", name)
		}
		if err != nil {
			return r, err
		}
	}
	groups := 0
	for _, group := range [][]rule{r.allOf, r.anyOf} {
		if len(group) > 0 {
			groups++
		}
	}
	switch {
	case top && (!strings.HasPrefix(r.authority, "https://") || groups != 1):
		return r, errors.New("an authority needs its address and one of allOf and anyOf")
	case !top && r.claim != "" && (r.operator == "" || groups != 0):
		return r, fmt.Errorf("claim %q needs one operator", r.claim)
	case !top && r.claim == "" && (r.operator != "" || groups != 1):
		return r, errors.New("a group needs one of allOf and anyOf")
	}
	return r, nil
}

func parseRules(raw json.RawMessage) (rules []rule, err error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	for _, raw := range list {
		r, err := parseRule(raw, false)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Permits reports whether a token of the issuer with these claims satisfies the policy, and if not, which
// conditions it fails. Claims are as [json.Unmarshal] makes them.
func (p *ReleasePolicy) Permits(issuer string, claims map[string]any) (bool, string) {
	failed := "authority"
	for _, r := range p.anyOf {
		if r.authority != issuer {
			continue
		}
		missed := r.missed(claims)
		if len(missed) == 0 {
			return true, ""
		}
		failed = strings.Join(missed, ", ")
	}
	return false, failed
}

// missed are the claims whose conditions do not hold; none if the rule holds.
func (r *rule) missed(claims map[string]any) (missed []string) {
	if r.claim != "" {
		got, ok := lookUp(claims, r.claim)
		if !ok || !operators[r.operator](got, r.value) {
			return []string{r.claim}
		}
		return nil
	}
	for _, sub := range append(append([]rule{}, r.allOf...), r.anyOf...) {
		m := sub.missed(claims)
		if len(m) == 0 && len(r.anyOf) > 0 {
			return nil
		}
		missed = append(missed, m...)
	}
	return missed
}

// lookUp finds a claim by its name; dots lead into objects.
func lookUp(claims map[string]any, name string) (any, bool) {
	head, rest, nested := strings.Cut(name, ".")
	value, ok := claims[head]
	if !nested || !ok {
		return value, ok
	}
	inner, ok := value.(map[string]any)
	if !ok {
		return nil, false
	}
	return lookUp(inner, rest)
}
