package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/init/config"
)

// appVariable carries the measured app block from init to the launcher, in the trusted environment.
const appVariable = "SESAME_APP"

// launch replaces this process by the application that the measured config names, if the host's arguments are
// the measured ones, or none at all.
func launch(args, env []string, exec func(path string, argv, env []string) error) error {
	var app config.App
	found := false
	rest := env[:0:0]
	for _, entry := range env {
		value, ok := strings.CutPrefix(entry, appVariable+"=")
		if !ok {
			rest = append(rest, entry)
			continue
		}
		if err := json.Unmarshal([]byte(value), &app); err != nil || found {
			return attest.Errorf(attest.CodeLaunch, "launching", "Remove "+appVariable+" from Occlum.json's env.",
				"%s is malformed or given twice", appVariable)
		}
		found = true
	}
	if !found || app.Path == "" {
		return attest.Errorf(attest.CodeLaunch, "launching",
			"Start it through init, with an app block in the measured config.",
			"no %s: the measured config names no application", appVariable)
	}
	if len(args) == 0 {
		args = app.Args
	}
	if err := matchArgs(app.Args, args); err != nil {
		return &attest.Error{
			Code: attest.CodeLaunch, Step: "launching " + filepath.Base(app.EntryPoint), Err: err,
			Hint: "Start it with exactly the arguments of app.args in the measured config, or with none.",
		}
	}
	err := exec(app.Path, append([]string{app.Path}, args...), rest)
	return attest.Errorf(attest.CodeLaunch, "launching", "Check app.path: it must be an executable file in the image.",
		"starting %s: %w", app.Path, err)
}

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
	form = strings.ReplaceAll(form, `\{name\}`, `[A-Za-z0-9._-]{1,64}`)
	return regexp.MustCompile(`^(?s:` + form + `)$`)
}
