package envelope_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/internal/aecs/envelope"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../attest/backend/aecs/testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func key(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(read(t, name))
	k, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func recorded(t testing.TB) *wire.DigitalEnvelopeEncrypted {
	t.Helper()
	var answer wire.GetEnclaveSecretResponse
	if err := proto.Unmarshal(read(t, "gena_secret-my-password.res.pb"), &answer); err != nil {
		t.Fatal(err)
	}
	return answer.GetSecretEnc()
}

func TestWhatIsSealedOpensForTheReceiverOnly(t *testing.T) {
	receiver, sender := key(t, "gena_client_uak_private.pem"), key(t, "gena_server_uak_private.pem")
	e, err := envelope.Seal(rand.Reader, []byte("a secret"), &receiver.PublicKey, "name", sender)
	if err != nil {
		t.Fatal(err)
	}
	s, err := envelope.Open(e, receiver, "name", &sender.PublicKey, 8)
	if err != nil || string(s.Expose()) != "a secret" {
		t.Errorf("%v", err)
	}
	if _, err := envelope.Open(e, sender, "name", &sender.PublicKey, 8); !errors.Is(err, envelope.ErrKey) {
		t.Errorf("for another receiver: %v", err)
	}
	if _, err := envelope.Open(e, receiver, "name", &receiver.PublicKey, 8); !errors.Is(err, envelope.ErrSignature) {
		t.Errorf("of another sender: %v", err)
	}
	if _, err := envelope.Open(e, receiver, "name", &sender.PublicKey, 7); !errors.Is(err, envelope.ErrForm) {
		t.Errorf("larger than wanted: %v", err)
	}
	if _, err := envelope.Seal(rand.Reader, nil, &receiver.PublicKey, "name", sender); !errors.Is(err, envelope.ErrForm) {
		t.Errorf("empty: %v", err)
	}
	unsigned, err := envelope.Seal(rand.Reader, []byte("a secret"), &receiver.PublicKey, "name", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := envelope.Open(unsigned, receiver, "name", &sender.PublicKey, 8); !errors.Is(err, envelope.ErrSignature) {
		t.Errorf("unsigned: %v", err)
	}
}

// TestWithGivenRandomnessTheRecordedCiphertextIsMade seals with the key and iv of a recorded envelope.
func TestWithGivenRandomnessTheRecordedCiphertextIsMade(t *testing.T) {
	was := recorded(t)
	receiver, sender := key(t, "gena_client_uak_private.pem"), key(t, "gena_server_uak_private.pem")
	symmetric, err := receiver.Decrypt(nil, was.GetEncryptedKey(), &rsa.OAEPOptions{Hash: 3}) // 3 is crypto.SHA1
	if err != nil {
		t.Fatal(err)
	}
	random := bytes.NewReader(append(symmetric, was.GetAesCipher().GetIv()...))
	now, err := envelope.Seal(random, []byte("password-test"), &receiver.PublicKey, "nonce-1", sender)
	if err != nil {
		t.Fatal(err)
	}
	now.EncryptedKey = was.EncryptedKey // OAEP has randomness of its own
	if !proto.Equal(now, was) {
		t.Error("another envelope")
	}
}

// FuzzOpen opens envelopes of any origin. Only the sender can make one that opens, so the plaintext must be the
// recorded one.
func FuzzOpen(f *testing.F) {
	receiver, sender := key(f, "gena_client_uak_private.pem"), key(f, "gena_server_uak_private.pem")
	seed, err := proto.Marshal(recorded(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, "nonce-1")
	f.Add(seed, "Enclave")
	f.Fuzz(func(t *testing.T, raw []byte, aad string) {
		var e wire.DigitalEnvelopeEncrypted
		if proto.Unmarshal(raw, &e) != nil {
			return
		}
		s, err := envelope.Open(&e, receiver, aad, &sender.PublicKey, 1<<16)
		if err == nil && string(s.Expose()) != "password-test" {
			t.Errorf("it opens to %q", s.Expose())
		}
	})
}
