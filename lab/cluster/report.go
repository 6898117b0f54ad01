package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// report is what was found, on the terminal and in a file.
type report struct {
	name                    string
	file                    *os.File
	out                     io.Writer
	start                   time.Time
	passed, failed, skipped int
}

func newReport(name string, terminal io.Writer) (*report, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return &report{name: name, file: f, out: io.MultiWriter(terminal, f), start: time.Now()}, nil
}

func (r *report) line(promise, detail string, err error, took time.Duration) {
	word := "pass"
	switch {
	case errors.Is(err, errSkipped):
		word = "skip"
		r.skipped++
	case err != nil:
		word = "FAIL"
		r.failed++
	default:
		r.passed++
	}
	text := promise
	if detail != "" {
		text += ": " + detail
	}
	if err != nil {
		text += ": " + err.Error()
	}
	fmt.Fprintf(r.out, "%s %6.1f s  %s\n", word, took.Seconds(), text)
}

// diagnosis goes to the file only.
func (r *report) diagnosis(text string) {
	for line := range strings.Lines(text) {
		fmt.Fprint(r.file, "    ", line)
	}
}

// finish writes the last line and returns how many checks failed.
func (r *report) finish() int {
	fmt.Fprintf(r.out, "%d passed, %d failed, %d left out in %.0f s; report: %s\n", r.passed, r.failed, r.skipped,
		time.Since(r.start).Seconds(), r.name)
	return r.failed
}

func (r *report) close() error { return r.file.Close() }
