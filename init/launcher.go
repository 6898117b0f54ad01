//go:build !plainlinux

package main

import (
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
)

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
