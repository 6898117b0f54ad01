package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/occlum/occlumcheck"
	"github.com/sesame-init/sesame/internal/testenv"
)

// forms are how a secret may be written: whole, and for a key also its bytes.
func forms(t *testing.T, file string) map[string][]byte {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]byte{"raw": bytes.TrimSpace(raw)}
	if key, err := sefs.ParseKey(raw); err == nil {
		values["key"] = append([]byte{}, key[:]...)
	} else { // SSLConfig: a line of its private key
		_, body, ok := bytes.Cut(raw, []byte(`PRIVATE KEY-----\n`))
		if !ok {
			t.Fatalf("%s holds no private key", file)
		}
		values["key"] = body[:64]
	}
	all := map[string][]byte{}
	for name, v := range values {
		all[name] = v
		text := hex.EncodeToString(v)
		all[name+", hex"], all[name+", HEX"] = []byte(text), []byte(strings.ToUpper(text))
		for shift := range 3 { // base64 depends on what comes before
			text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), v...))
			all[name+", base64"+strings.Repeat("'", shift)] = []byte(text[4 : len(text)&^3-4])
		}
	}
	return all
}

// leaks names the files below dir that hold a secret of the demo.
func leaks(t *testing.T, d *demo, dir string) (found []string) {
	t.Helper()
	searched := 0
	wanted := map[string][]byte{}
	for secret, file := range d.secretFiles() {
		for form, value := range forms(t, file) {
			wanted[secret+" ("+form+")"] = value
		}
	}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		searched++
		for secret, value := range wanted {
			if bytes.Contains(text, value) {
				found = append(found, secret+" in "+strings.TrimPrefix(name, d.work))
			}
		}
		return nil
	})
	if err != nil || searched < 10 {
		t.Fatalf("%d files searched in %s, %v", searched, dir, err)
	}
	return found
}

func secretErrors(t *testing.T, dir string) (found []string) {
	t.Helper()
	findings, err := occlumcheck.Instance(dir, occlumcheck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Severity == occlumcheck.Error && strings.Contains(f.Problem, "anyone can read") {
			found = append(found, f.String())
		}
	}
	return found
}

// TestHostReadsNoSecretOfTheDemo looks through both instances, before and after they have run with their secrets.
func TestHostReadsNoSecretOfTheDemo(t *testing.T) {
	testenv.Long(t, "the demo once more")
	d := newDemo(t, "grpc-ratls")
	if err := d.run(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"broker", "workload"} {
		dir := d.path(name)
		if name == "workload" { // the image's source stays with its builder: what is shipped is the encrypted image
			if err := os.RemoveAll(filepath.Join(dir, "image")); err != nil {
				t.Fatal(err)
			}
		}
		if found := leaks(t, d, dir); len(found) > 0 {
			t.Errorf("%s: %s", name, strings.Join(found, "\n"))
		}
		if found := secretErrors(t, dir); len(found) > 0 {
			t.Errorf("%s: %s", name, strings.Join(found, "\n"))
		}
	}
}

// TestInstancesOfOcclumsStillServe boots against a broker that was built as Occlum's examples build it. The check calls it
// what it is, the broker says so at every start, and the search of the test above finds its secrets.
func TestInstancesOfOcclumsStillServe(t *testing.T) {
	testenv.Long(t, "the demo once more")
	d := newDemo(t, "grpc-ratls")
	d.wire, d.occlumShape, d.occlumFiles = "legacy", true, true
	if err := d.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.serveAndPredict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b := d.service.(*broker); !b.running.says("the host can read them") {
		t.Errorf("the broker does not warn:\n%s", strings.Join(b.running.lines(), "\n"))
	}
	d.stopAll()
	if found := leaks(t, d, d.path("broker")); len(found) < 3 {
		t.Errorf("the search finds only %v", found)
	}
	if found := secretErrors(t, d.path("broker")); len(found) != 1 || !strings.Contains(found[0], "image/secret_config.json") {
		t.Errorf("the check finds %v", found)
	}
}
