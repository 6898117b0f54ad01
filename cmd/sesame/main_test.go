package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sesame": func() { os.Exit(run()) }})
}

// TestCommands runs the scripts in testdata, each what a person would type.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			template, err := os.ReadFile("../../Occlum.json")
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(env.WorkDir, "Occlum.json"), template, 0o644)
		},
	})
}
