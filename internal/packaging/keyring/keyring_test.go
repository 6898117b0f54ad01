package keyring

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/lab/occlumsim"
)

var options = Options{Names: []string{"localhost", "127.0.0.1"}, Lifetime: time.Hour, Now: time.Now()}

// filled is a folder that was made once for all tests, as signing keys take their time. One of its keys was given.
type filled struct {
	dir  string
	ring *Ring
	made []string
}

var given = []byte("00-01-02-03-04-05-06-07-08-09-0a-0b-0c-0d-0e-0f\n")

// tempDir is where folder makes it, and removed when the tests end.
var tempDir string

var folder = sync.OnceValues(func() (filled, error) {
	dir := filepath.Join(tempDir, "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return filled{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, ImageKey), given, 0o600); err != nil {
		return filled{}, err
	}
	ring, made, err := Make(dir, options)
	return filled{dir, ring, made}, err
})

func TestMain(m *testing.M) {
	var err error
	if tempDir, err = os.MkdirTemp("", "keyring-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(tempDir)
	os.Exit(code)
}

func TestKeysAreMadeOnceAndALossIsAnError(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "keys")); attest.CodeOf(err) != attest.CodeUsage {
		t.Errorf("opening an empty folder: %v", err)
	}
	f, err := folder()
	if err != nil {
		t.Fatal(err)
	}
	dir, ring, made := f.dir, f.ring, f.made
	if strings.Join(made, " ") != strings.Join([]string{BrokerSigner, WorkloadSigner, ModelKey, SSLConfig, AdminKey},
		" ") {
		t.Errorf("made %v", made)
	}
	before := make(map[string]string)
	for _, file := range files() {
		info, err := os.Stat(ring.Path(file))
		if err != nil {
			t.Fatal(err)
		}
		if file != Certificate && file != AdminCert && info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", file, info.Mode())
		}
		text, err := os.ReadFile(ring.Path(file))
		if err != nil {
			t.Fatal(err)
		}
		before[file] = string(text)
	}
	if before[ImageKey] != string(given) {
		t.Error("a key that was there was replaced")
	}
	if _, made, err := Make(dir, options); err != nil || made != nil {
		t.Errorf("again: made %v, %v", made, err)
	}
	for _, file := range files() {
		if text, err := os.ReadFile(ring.Path(file)); err != nil || string(text) != before[file] {
			t.Errorf("%s changed, %v", file, err)
		}
	}
	for _, file := range files() {
		if err := os.Rename(ring.Path(file), ring.Path("away")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Make(dir, options); attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(err.Error(), file) {
			t.Errorf("without %s: %v", file, err)
		}
		if _, err := os.Stat(ring.Path(file)); err == nil {
			t.Fatalf("%s was made again", file)
		}
		if err := os.Rename(ring.Path("away"), ring.Path(file)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSignersAreWhatSGXTakes(t *testing.T) {
	f, err := folder()
	if err != nil {
		t.Fatal(err)
	}
	ring := f.ring
	for _, file := range []string{BrokerSigner, WorkloadSigner} {
		key, err := occlumsim.ReadSignKey(ring.Path(file))
		if err != nil {
			t.Fatal(err)
		}
		if key.E != 3 || key.N.BitLen() != 3072 {
			t.Errorf("%s: exponent %d, %d bits", file, key.E, key.N.BitLen())
		}
		want, err := occlumsim.MRSigner(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.MRSigner(file); err != nil || got != hex.EncodeToString(want[:]) {
			t.Errorf("%s: MRSIGNER %s, %v, want %x", file, got, err, want)
		}
	}
}

func TestTheCertificateHasItsNamesAndVerifiesItself(t *testing.T) {
	f, err := folder()
	if err != nil {
		t.Fatal(err)
	}
	ring := f.ring
	for _, file := range []string{Certificate, AdminCert} {
		text, err := os.ReadFile(ring.Path(file))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		if c.IsCA || !c.BasicConstraintsValid || c.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Errorf("%s is an authority", file)
		}
	}
	text, err := os.ReadFile(ring.Path(Certificate))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c)
	for _, n := range options.Names {
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, DNSName: n}); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	config, err := os.ReadFile(ring.Path(SSLConfig))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(config), strings.ReplaceAll(string(text), "\n", `\n`)) {
		t.Error("ssl_config holds another certificate")
	}
}

func TestHalfAnIdentityIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, Certificate), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Make(dir, options); attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("%v", err)
	}
}

func TestSecretsThatOthersMayReadAreRefused(t *testing.T) {
	f, err := folder()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "keys")
	if err := os.CopyFS(dir, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	for _, file := range files() {
		path := filepath.Join(dir, file)
		isPublic := slices.Contains([]string{Certificate, AdminCert}, file)
		if info, err := os.Stat(filepath.Join(f.dir, file)); err != nil || (info.Mode() == 0o600) == isPublic {
			t.Errorf("%s was made with mode %v, error %v", file, info.Mode(), err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	for _, file := range files() {
		path := filepath.Join(dir, file)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir)
		_, _, made := Make(dir, options)
		if slices.Contains([]string{Certificate, AdminCert}, file) {
			if err != nil || made != nil {
				t.Errorf("%s: %v, %v", file, err, made)
			}
			continue
		}
		for _, err := range []error{err, made} {
			if !strings.Contains(attest.HintOf(err), "chmod 600 "+path) {
				t.Errorf("%s: %v, hint %q", file, err, attest.HintOf(err))
			}
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
