package policy

import (
	"context"
	"reflect"
	"slices"
)

// A Store holds the policy in force. It is safe for concurrent use.
type Store interface {
	Current() *Policy
	// Replace puts a policy in force, the whole of it, or keeps the old one and says why. by is who brings it, for
	// the log. The error's code is [attest.CodeConfig] for a text that is not a sound policy or may not follow the
	// old one.
	Replace(ctx context.Context, text []byte, by string) error
}

// Changes says what differs from an older policy, by keys: "workloads.inference changed".
func (p *Policy) Changes(old *Policy) []string {
	var out []string
	differ := func(key string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			out = append(out, key+" changed")
		}
	}
	differ("trust", p.Trust, old.Trust)
	differ("tcb", p.TCB, old.TCB)
	out = append(out, changesOf("workloads.", p.Workloads, old.Workloads)...)
	out = append(out, changesOf("secrets.", p.Secrets, old.Secrets)...)
	differ("broker", p.Broker, old.Broker)
	return out
}

func changesOf[V any](prefix string, now, old map[string]V) []string {
	var out []string
	for _, name := range sortedKeys(now) {
		before, ok := old[name]
		switch {
		case !ok:
			out = append(out, prefix+name+" added")
		case !reflect.DeepEqual(before, now[name]):
			out = append(out, prefix+name+" changed")
		}
	}
	for _, name := range sortedKeys(old) {
		if _, ok := now[name]; !ok {
			out = append(out, prefix+name+" removed")
		}
	}
	slices.Sort(out)
	return out
}
