// Command stamp keeps the date in internal/version, which is the lower bound of the clocks of all programs.
//
//	stamp         writes today's date, UTC
//	stamp -check  fails if the date is more than 90 days old, or in the future
//
// Releases and a scheduled job check the date. Tests do not look at today's date: an old tag must pass them for ever.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"time"
)

const (
	file   = "internal/version/version.go"
	maxAge = 90 * 24 * time.Hour
)

var line = regexp.MustCompile(`(?m)^const date = "(\d{4}-\d\d-\d\d)"$`)

func main() {
	if err := run(os.Args[1:], time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "stamp: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string, now time.Time) error {
	flags := flag.NewFlagSet("stamp", flag.ContinueOnError)
	check := flags.Bool("check", false, "fail if the date is too old")
	name := flags.String("file", file, "`file` that holds the date")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*name)
	if err != nil {
		return err
	}
	found := line.FindSubmatch(text)
	if found == nil {
		return fmt.Errorf("%s has no line %q", *name, `const date = "YYYY-MM-DD"`)
	}
	if !*check {
		stamped := line.ReplaceAll(text, fmt.Appendf(nil, "const date = %q", now.UTC().Format(time.DateOnly)))
		return os.WriteFile(*name, stamped, 0o644)
	}
	date, err := time.Parse(time.DateOnly, string(found[1]))
	switch {
	case err != nil:
		return err
	case now.Before(date):
		return fmt.Errorf("the date %s in %s is in the future", found[1], *name)
	case now.Sub(date) > maxAge:
		return errors.New("the date " + string(found[1]) + " in " + *name + " is more than 90 days old: run make stamp, and commit the file")
	}
	return nil
}
