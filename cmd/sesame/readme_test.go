package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestReadmeExamplesRun runs every line "$ …" of the console blocks in both languages, in one directory that has a model.
func TestReadmeExamplesRun(t *testing.T) {
	for _, readme := range []string{"README.md", "README.zh-CN.md"} {
		t.Run(readme, func(t *testing.T) { runReadme(t, filepath.Join("../..", readme)) })
	}
}

func runReadme(t *testing.T, readme string) {
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	inside, lines := false, 0
	for line := range strings.Lines(string(text)) {
		switch {
		case strings.HasPrefix(line, "```console"):
			inside = true
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside && strings.HasPrefix(line, "$ "):
			script.WriteString("exec " + strings.TrimPrefix(line, "$ "))
			lines++
		}
	}
	if lines == 0 {
		t.Fatal(readme + " has no examples to run")
	}
	script.WriteString("-- model/1/weights --\nweights\n-- model/labels.txt --\nstar\n")
	name := filepath.Join(t.TempDir(), "readme.txtar")
	if err := os.WriteFile(name, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Files: []string{name}})
}
