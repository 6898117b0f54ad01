package main

import (
	"crypto/x509/pkix"
	"image/png"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sesame-init/sesame/lab/standin/pictures"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

// TestInferenceCommands runs the scripts in testdata/inference beside a model server. Its address is in $SERVER; the
// scripts find its certificate in server.crt, another one in other.crt, and an image in picture.png.
func TestInferenceCommands(t *testing.T) {
	server := standintest.Start(t)
	certificate, err := os.ReadFile(server.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	other := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/inference", RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SERVER", server.Address)
			standintest.WriteFile(t, filepath.Join(env.WorkDir, "server.crt"), certificate)
			standintest.WriteFile(t, filepath.Join(env.WorkDir, "other.crt"), other.Certificate)
			f, err := os.Create(filepath.Join(env.WorkDir, "picture.png"))
			if err != nil {
				return err
			}
			defer f.Close()
			return png.Encode(f, pictures.Draw(3, 100, mathrand.New(mathrand.NewPCG(1, 2))))
		},
	})
}
