package main

import (
	"fmt"
	"regexp"
	"strings"
)

// matchArgs compares what the host asks for with what is measured.
func matchArgs(measured, asked []string) error {
	if len(asked) != len(measured) {
		return fmt.Errorf("the host asks for %d arguments, the measured config has %d", len(asked), len(measured))
	}
	for i, want := range measured {
		if !argForm(want).MatchString(asked[i]) {
			return fmt.Errorf("the host's argument %d is %q, the measured config has %q", i+1, asked[i], want)
		}
	}
	return nil
}

// argForm is the pattern of a measured argument: literal but for its places.
func argForm(measured string) *regexp.Regexp {
	form := regexp.QuoteMeta(measured)
	form = strings.ReplaceAll(form, `\{number\}`, `[0-9]{1,10}`)
	form = strings.ReplaceAll(form, `\{name\}`, `[A-Za-z0-9_][A-Za-z0-9._-]{0,63}`) // no option, and not the folder above
	return regexp.MustCompile(`^(?s:` + form + `)$`)
}
