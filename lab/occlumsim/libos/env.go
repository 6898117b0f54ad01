package libos

import (
	"path"
	"slices"
	"strings"
)

func nameOf(entry string) string {
	name, _, _ := strings.Cut(entry, "=")
	return name
}

// mergeEnv is what 363 does with its environment: entries, and those defaults whose name is not among them.
func mergeEnv(entries, defaults []string) []string {
	merged := slices.Clone(entries)
	for _, d := range defaults {
		if !hasName(entries, nameOf(d)) {
			merged = append(merged, d)
		}
	}
	return merged
}

// environment is what a program gets: the trusted entries, replaced and followed by the host's value of every name
// that is untrusted (L/entry.rs, merge_env).
func environment(trusted, untrusted, host []string) []string {
	var fromHost []string
	for _, h := range host {
		if strings.Contains(h, "=") && slices.Contains(untrusted, nameOf(h)) {
			fromHost = append(fromHost, h)
		}
	}
	var env []string
	for _, t := range trusted {
		if !hasName(fromHost, nameOf(t)) {
			env = append(env, t)
		}
	}
	return append(env, fromHost...)
}

func hasName(entries []string, name string) bool {
	return slices.ContainsFunc(entries, func(e string) bool { return nameOf(e) == name })
}

// permitted says whether an entry point allows a program: a prefix of whole path components.
func permitted(program string, entryPoints []string) bool {
	return slices.ContainsFunc(entryPoints, func(e string) bool {
		e = path.Clean(e)
		return program == e || e == "/" || strings.HasPrefix(program, e+"/")
	})
}

// auxvSize is what the LibOS's auxiliary vector takes of the stack area, with the random bytes and alignment.
const auxvSize = 16*16 + 16 + 16

// stackUse is how many bytes of the stack area arguments, environment and auxiliary vector take.
func stackUse(args, env []string) int {
	n := 8 + auxvSize
	for _, list := range [][]string{args, env} {
		n += 8
		for _, s := range list {
			n += 8 + len(s) + 1
		}
	}
	return n
}
