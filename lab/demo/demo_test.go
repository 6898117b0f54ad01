package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	initconfig "github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// newDemo finds the programs and the model that make built.
func newDemo(t *testing.T, backend string) *demo {
	t.Helper()
	testenv.FUSE(t)
	d := &demo{work: t.TempDir(), wire: "session", start: time.Now()}
	if !d.choose(backend) {
		t.Fatalf("no service %q", backend)
	}
	for path, to := range map[string]*string{"../../bin": &d.bin, "../../build/model": &d.model} {
		abs, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(abs); err != nil {
			testenv.Missing(t, "bin", "run make build model first: "+err.Error())
		}
		*to = abs
	}
	t.Cleanup(d.stopAll)
	return d
}

func TestMainJob(t *testing.T) {
	for name, change := range map[string]func(*demo){
		"session protocol": func(*demo) {},
		"legacy wire":      func(d *demo) { d.wire = "legacy" },
		"Occlum's config":  func(d *demo) { d.occlumShape = true },
		"attested TLS":     func(d *demo) { d.attestedTLS = true },
	} {
		t.Run(name, func(t *testing.T) {
			if name != "session protocol" {
				testenv.Long(t, "the demo once more")
			}
			d := newDemo(t, "grpc-ratls")
			change(d)
			if err := d.run(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		})
	}
	for name, change := range map[string]func(*demo){
		"AECS, generation A":    func(d *demo) { d.wire = "legacy" },
		"AECS, Occlum's config": func(d *demo) { d.wire, d.occlumShape = "legacy", true },
	} {
		t.Run(name, func(t *testing.T) {
			testenv.Long(t, "the demo once more")
			d := newDemo(t, "aecs")
			change(d)
			if err := d.run(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		})
	}
	for _, backend := range serviceWords() {
		if backend == "grpc-ratls" {
			continue
		}
		t.Run(backend, func(t *testing.T) {
			testenv.Long(t, "the demo once more")
			if err := newDemo(t, backend).run(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The configs for two services are the same but for one word.
func TestOneWordChoosesTheService(t *testing.T) {
	d := newDemo(t, "grpc-ratls")
	if err := d.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	config := func(backend string) string {
		t.Helper()
		d.backend = backend
		file := filepath.Join(t.TempDir(), backend)
		if err := d.writeInitConfig(file, "60s"); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first := config("grpc-ratls")
	for _, backend := range serviceWords() {
		other := config(backend)
		if strings.Replace(other, `"backend": "`+backend+`"`, `"backend": "grpc-ratls"`, 1) != first {
			t.Errorf("another word is changed for %s, too:\n%s\n%s", backend, first, other)
		}
		if _, err := initconfig.Parse([]byte(other)); err != nil {
			t.Errorf("%s: %v", backend, err)
		}
	}
}

func TestEveryTamperingIsRefusedForItsReason(t *testing.T) {
	for _, backend := range serviceWords() {
		for word := range newDemo(t, backend).tamperings() {
			t.Run(backend+"/"+word, func(t *testing.T) {
				if backend != "grpc-ratls" || word != "quote" {
					testenv.Long(t, "the demo once more")
				}
				d := newDemo(t, backend)
				if err := d.run(t.Context(), d.tamperings()[word]); !errors.Is(err, errRefused) {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestMainJobOnLinux(t *testing.T) {
	testenv.Root(t)
	testenv.Program(t, "swtpm", swtpm.Program, "swtpm swtpm-tools")
	for _, tamper := range []string{"", "pcr", "ak"} {
		t.Run("tamper "+tamper, func(t *testing.T) {
			if tamper != "" {
				testenv.Long(t, "the demo once more")
			}
			d := newDemo(t, "grpc-ratls")
			work, err := os.MkdirTemp("", "demo") // a socket's path must be short
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.stopAll(); _ = os.RemoveAll(work) })
			d.work = work
			if err := runLinux(t.Context(), d, tamper); !errors.Is(err, errRefused) && tamper != "" || err != nil && tamper == "" {
				t.Fatal(err)
			}
		})
	}
}
