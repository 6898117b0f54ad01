package occlumcheck

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/tfssl"
)

func privateKey(t testing.TB) string {
	t.Helper()
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateKeyDER(t)}))
}

func privateKeyDER(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func certificate(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "c"}, NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

const textKey = "00-11-22-33-44-55-66-77-88-99-aa-bb-cc-dd-ee-ff"

// secretFiles are files with secrets, by what they are.
func secretFiles(t testing.TB) map[string]string {
	pair := tfssl.Encode([]byte(privateKey(t)), certificate(t))
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	return map[string]string{
		"PEM":                       privateKey(t),
		"PEM behind other text":     "some text\n" + privateKey(t),
		"PEM with CRLF":             strings.ReplaceAll(privateKey(t), "\n", "\r\n"),
		"DER":                       string(privateKeyDER(t)),
		"SSLConfig":                 string(pair),
		"SSLConfig in JSON":         fmt.Sprintf("{\"c\": %q}", pair),
		"a key":                     textKey + "\n",
		"secret_config.json":        fmt.Sprintf("{\"image_key\": %q, \"other\": %q}", b64(textKey), b64("x")),
		"a short password in it":    fmt.Sprintf("{\"p\": %q}", b64("hunter2")),
		"16 random bytes in it":     fmt.Sprintf("{\"p\": %q}", b64("\x80\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff")),
		"a key in a config":         `{"image_key": "` + textKey + `"}`,
		"a database's password":     "store: {postgres: \"postgres://broker:s3cret@db/sesame\"}",
		"a token":                   `{"t": "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0x.c2lnbmF0dXJlc2lnbmF0dXJl"}`,
		"secrets beside a digest":   fmt.Sprintf("{\"d\": %q, \"p\": %q}", b64(strings.Repeat("\xff", 32)), b64("hunter2")),
		"secrets beside public PEM": fmt.Sprintf("{\"c\": %q, \"p\": %q}", b64(string(certificate(t))), b64("hunter2")),
	}
}

func TestSecretsAreFoundByContent(t *testing.T) {
	for what, text := range secretFiles(t) {
		for _, root := range []string{"initfs", "image"} {
			dir := newInstance(t)
			if root == "image" { // one without encryption
				write(t, filepath.Join(dir, "build/mount/__ROOT/metadata"), volume(1))
			}
			write(t, filepath.Join(dir, root, "opt/any.json"), text)
			if !finds(t, dir, Error, root+"/opt/any.json") {
				t.Errorf("%s in %s is no error", what, root)
			}
			if root == "initfs" {
				continue
			}
			write(t, filepath.Join(dir, "build/mount/__ROOT/metadata"), volume(0))
			if finds(t, dir, Error, root+"/opt/any.json") {
				t.Errorf("%s in an encrypted image is an error", what)
			}
		}
	}
}

func finds(t *testing.T, dir string, s Severity, field string) bool {
	t.Helper()
	found, err := Instance(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Severity == s && f.Field == field {
			return true
		}
	}
	return false
}

// TestWhatIsPublicIsNoError has what applications hold that looks like secrets.
func TestWhatIsPublicIsNoError(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	digest := []byte(strings.Repeat("\xfe", 32))
	program, err := os.Executable() // it links crypto/x509
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"a certificate":        string(certificate(t)),
		"certificates in JSON": fmt.Sprintf("{\"ca\": %q}", b64(certificate(t))),
		"the words alone":      "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
		"words in a program":   "\x00-----BEGIN RSA PRIVATE KEY-----\x00-----BEGIN EC PRIVATE KEY-----\x00",
		"a part of a program":  string(whole[:min(len(whole), maxScanned)]),
		"checksums":            fmt.Sprintf("{\"a.js\": %q, \"b.js\": %q}", b64(digest), b64(digest)),
		"words":                `{"name": "test", "kind": "testtest", "text": "abcdabcdabcdabcdabcdabcd"}`,
		"labels":               `{"0": "tench", "1": "goldfish"}`,
		"a MAC":                `{"volumes": [{"key": "model_key", "mac": "` + textKey + `"}]}`,
		"a machine's id":       "0123456789abcdef0123456789abcdef\n",
		"a URL":                `{"url": "https://pccs:8081/sgx/certification/v4/", "u": "postgres://broker@db/sesame"}`,
		"a placeholder":        "password: ${PASSWORD}\npasswd: /run/secrets/p\n",
		"empty":                "",
		"no members":           "{}",
	} {
		for _, s := range secretsIn("/opt/any.json", []byte(text)) {
			if s.severity == Error {
				t.Errorf("%s: %s", what, s.what)
			}
		}
	}
	dir := newInstance(t)
	write(t, filepath.Join(dir, "build/mount/__ROOT/metadata"), volume(1))
	write(t, filepath.Join(dir, "image/usr/lib/python3/test/keycert.pem"), privateKey(t))
	if finds(t, dir, Error, "image/usr/lib/python3/test/keycert.pem") ||
		!finds(t, dir, Warning, "image/usr/lib/python3/test/keycert.pem") {
		t.Error("a test vector is no warning")
	}
}

// TestFindingsHoldNoSecret looks for what was found in what is printed of it.
func TestFindingsHoldNoSecret(t *testing.T) {
	for what, text := range secretFiles(t) {
		for _, s := range secretsIn("/etc/any.json", []byte(text)) {
			for _, value := range []string{textKey, "hunter2", "s3cret", "eyJ"} {
				if strings.Contains(s.what, value) {
					t.Errorf("%s: %s", what, s.what)
				}
			}
		}
	}
}

func FuzzSecrets(f *testing.F) {
	for _, text := range secretFiles(f) {
		f.Add("/etc/any.json", []byte(text))
	}
	f.Fuzz(func(t *testing.T, name string, content []byte) {
		for _, s := range secretsIn(name, content) {
			if s.severity != Error && s.severity != Warning || s.what == "" {
				t.Errorf("%+v", s)
			}
		}
	})
}
