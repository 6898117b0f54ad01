//go:build !plainlinux

package main

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/config"
)

var demoApp = config.App{
	Path: "/opt/serving/bin/tensorflow_model_server", EntryPoint: "/bin/tensorflow_model_server",
	Args: []string{"--port={number}", "--model_name=resnet", "--name={name}.x"},
}

func appEnv(t *testing.T, app config.App) string {
	t.Helper()
	text, err := json.Marshal(app)
	if err != nil {
		t.Fatal(err)
	}
	return appVariable + "=" + string(text)
}

func TestLauncherStartsTheMeasuredProgramOnly(t *testing.T) {
	plain := demoApp
	plain.Args = []string{"--port=9001", "--model_name=resnet"}
	for name, c := range map[string]struct {
		app   config.App
		args  []string
		wants []string // nil: refused
	}{
		"exact":             {plain, []string{"--port=9001", "--model_name=resnet"}, plain.Args},
		"none":              {plain, nil, plain.Args},
		"filled in":         {demoApp, []string{"--port=31001", "--model_name=resnet", "--name=a-b.x"}, []string{"--port=31001", "--model_name=resnet", "--name=a-b.x"}},
		"another value":     {plain, []string{"--port=9002", "--model_name=resnet"}, nil},
		"one more":          {plain, []string{"--port=9001", "--model_name=resnet", "--v=9"}, nil},
		"one less":          {plain, []string{"--port=9001"}, nil},
		"order":             {plain, []string{"--model_name=resnet", "--port=9001"}, nil},
		"not a number":      {demoApp, []string{"--port=1 --x", "--model_name=resnet", "--name=a.x"}, nil},
		"slash in name":     {demoApp, []string{"--port=1", "--model_name=resnet", "--name=../a.x"}, nil},
		"name is an option": {demoApp, []string{"--port=1", "--model_name=resnet", "--name=-a.x"}, nil},
		"name is above":     {demoApp, []string{"--port=1", "--model_name=resnet", "--name=...x"}, nil},
		"name is hidden":    {demoApp, []string{"--port=1", "--model_name=resnet", "--name=.a.x"}, nil},
		"longest name":      {demoApp, []string{"--port=1", "--model_name=resnet", "--name=" + strings.Repeat("_", 64) + ".x"}, []string{"--port=1", "--model_name=resnet", "--name=" + strings.Repeat("_", 64) + ".x"}},
		"longer name":       {demoApp, []string{"--port=1", "--model_name=resnet", "--name=" + strings.Repeat("_", 65) + ".x"}, nil},
		"newline":           {demoApp, []string{"--port=1\n", "--model_name=resnet", "--name=a.x"}, nil},
		"dot is literal":    {demoApp, []string{"--port=1", "--model_name=resnet", "--name=aax"}, nil},
		"places not filled": {demoApp, nil, nil},
	} {
		var gotPath string
		var gotArgs, gotEnv []string
		started := errors.New("exec would not return")
		err := launch(c.args, []string{"A=b", appEnv(t, c.app)}, func(path string, argv, env []string) error {
			gotPath, gotArgs, gotEnv = path, argv, env
			return started
		})
		if c.wants == nil {
			if gotPath != "" || attest.CodeOf(err) != attest.CodeLaunch {
				t.Errorf("%s: started %q %q, error %v", name, gotPath, gotArgs, err)
			}
			continue
		}
		if gotPath != c.app.Path || !slices.Equal(gotArgs[1:], c.wants) {
			t.Errorf("%s: started %q %q (%v), want %q", name, gotPath, gotArgs, err, c.wants)
		}
		if !slices.Equal(gotEnv, []string{"A=b"}) {
			t.Errorf("%s: the application sees %q", name, gotEnv)
		}
	}
}

func TestLauncherWithoutMeasuredAppRefuses(t *testing.T) {
	for name, env := range map[string][]string{
		"absent":    {"A=b"},
		"malformed": {appVariable + "={"},
		"empty":     {appVariable + "={}"},
		"twice":     {appEnv(t, demoApp), appEnv(t, demoApp)},
	} {
		err := launch(nil, env, func(string, []string, []string) error { t.Errorf("%s: started", name); return nil })
		if attest.CodeOf(err) != attest.CodeLaunch {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefusalIsTwoLinesAndAClass(t *testing.T) {
	for code := range exitCodes {
		var out strings.Builder
		status := refuse(&out, attest.Errorf(code, "mounting /", "Try another key.", "input/output error"))
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], string(code)) || !strings.Contains(lines[1], "Try another key.") {
			t.Errorf("%s prints %q", code, lines)
		}
		if status < 1 || status > 127 {
			t.Errorf("%s exits with %d: Occlum takes 0 and 128 for success", code, status)
		}
	}
	if refuse(&strings.Builder{}, nil) != 0 {
		t.Error("success is not 0")
	}
}
