package tfssl_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/tfssl"
)

func TestWhatIsWrittenIsAnSSLConfig(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key, certificate, err := pki.NewServer([]string{"localhost"}, now, now.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var c tf.SSLConfig
	if err := prototext.Unmarshal(tfssl.Encode(key, certificate), &c); err != nil {
		t.Fatal(err)
	}
	if c.GetServerKey() != string(key) || c.GetServerCert() != string(certificate) || c.GetClientVerify() || c.GetCustomCa() != "" {
		t.Errorf("read back %v", &c)
	}
}

// TestBytes: a config is a secret that a store keeps and an enclave measures.
func TestBytes(t *testing.T) {
	const want = `server_key: "-----BEGIN K-----\nAA==\n-----END K-----\n"` + "\n" +
		`server_cert: "-----BEGIN C-----\nAQ==\n-----END C-----\n"` + "\n" +
		"client_verify: false\n"
	got := tfssl.Encode([]byte("-----BEGIN K-----\nAA==\n-----END K-----\n"), []byte("-----BEGIN C-----\nAQ==\n-----END C-----\n"))
	if string(got) != want {
		t.Errorf("written %q", got)
	}
}

func TestNoCopyOfTheKeyIsLeftBehind(t *testing.T) {
	key := make([]byte, 0, 4000) // the worst case: lines of one character
	for len(key) < cap(key) {
		key = append(key, "a\n"...)
	}
	if n := testing.AllocsPerRun(10, func() { tfssl.Encode(key, key) }); n > 3 {
		t.Errorf("%v allocations: the buffer has grown", n)
	}
}
