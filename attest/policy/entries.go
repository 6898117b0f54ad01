package policy

import (
	"fmt"
	"reflect"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy/rule"
)

// Entries are those of one type of evidence: any of them may match.
type Entries[T any, P interface {
	*T
	rule.Entry
}] []T

// list is [Entries] of any type.
type list interface {
	of() attest.EvidenceType
	all() []rule.Entry
}

func (Entries[T, P]) of() attest.EvidenceType { return P(new(T)).Type() }

func (e Entries[T, P]) all() []rule.Entry {
	out := make([]rule.Entry, len(e))
	for i := range e {
		out[i] = P(&e[i])
	}
	return out
}

// lists are the members of the policy that hold entries, in their order.
func (p *Policy) lists() []list {
	var out []list
	v := reflect.ValueOf(p).Elem()
	for i := range v.NumField() {
		if l, ok := v.Field(i).Interface().(list); ok {
			out = append(out, l)
		}
	}
	return out
}

// each calls f for every entry with the path of its key: "sgx[0]".
func (p *Policy) each(f func(key string, entry rule.Entry)) {
	for _, l := range p.lists() {
		for i, entry := range l.all() {
			f(fmt.Sprintf("%s[%d]", l.of(), i), entry)
		}
	}
}

// Types are the types of evidence that a policy can have entries for.
func Types() []attest.EvidenceType {
	var types []attest.EvidenceType
	for _, l := range new(Policy).lists() {
		types = append(types, l.of())
	}
	return types
}
