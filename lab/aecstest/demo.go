package aecstest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/internal/pki"
)

// DemoService is the service of the upstream's demonstration server.
const DemoService = "service1"

// Two halves of a throw-away SM2 key, which crypto/elliptic has no curve for.
const (
	sm2Private = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqBHM9VAYItBG0wawIBAQQgA17nvqvPxZvI0xix
rJpocYQZgx9tdyFbP8RMY0xi7YGhRANCAARELe6y4HMUkS/ud4e6CplEY88khi9T
L6LiorOEAojfv5OJOgjEGA5RkZqoCWL7XybW30Cocmjk6dBIh0/P4pFn
-----END PRIVATE KEY-----
`
	sm2Public = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoEcz1UBgi0DQgAERC3usuBzFJEv7neHugqZRGPPJIYv
Uy+i4qKzhAKI37+TiToIxBgOUZGaqAli+18m1t9AqHJo5OnQSIdPz+KRZw==
-----END PUBLIC KEY-----
`
)

// Secret is a secret of imported data that any enclave gets of which one of the rules is true.
func Secret(service, name, data string, rules ...*wire.UnifiedAttestationAttributes) *wire.EnclaveSecret {
	return &wire.EnclaveSecret{
		Spec: &wire.EnclaveSecretSpec{
			SecretName: name, ServiceName: service, Type: wire.EnclaveSecretType_SECRET_TYPE_IMPORT_DATA, Readonly: "true",
			Policy: &wire.EnclaveSecretPolicy{Policy: &wire.UnifiedAttestationPolicy{MainAttributes: rules}},
		},
		Data: data,
	}
}

// DemoSecrets are the six secrets that the upstream's demonstration server is set up with
// (deployment/conf/service_secret_policy.yaml), new ones with every call. Their only rule is a security version of at
// least 0, so every enclave gets them.
func DemoSecrets(now time.Time) ([]*wire.EnclaveSecret, error) {
	symmetric := make([]byte, 32)
	if _, err := rand.Read(symmetric); err != nil {
		return nil, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	private, public, err := pkcs8(key)
	if err != nil {
		return nil, err
	}
	certificate, err := selfSigned(key, now)
	if err != nil {
		return nil, err
	}
	items := []*wire.EnclaveKvPair{{Key: "id", Value: "12345678"}, {Key: "nonce", Value: "1234567890abcdef"}}
	texts := make(map[string]string)
	for name, m := range map[string]proto.Message{
		"keypair":       &wire.AsymmetricKeyPair{PrivateKey: private, PublicKey: public},
		"certificate":   &wire.SslCredentialsOptions{RootCert: certificate, PrivateKey: private, CertChain: certificate},
		"sm2-keypair":   &wire.AsymmetricKeyPair{PrivateKey: sm2Private, PublicKey: sm2Public},
		"configuration": &wire.EnclaveConfigurations{Items: items},
	} {
		if texts[name], err = wire.JSON(m); err != nil {
			return nil, err
		}
	}
	texts["password"], texts["aes256-key"] = "password-test", strings.ToUpper(hex.EncodeToString(symmetric))

	var secrets []*wire.EnclaveSecret
	for _, d := range []struct {
		name, share string
		kind        wire.EnclaveSecretType
		params      []*wire.EnclaveKvPair
	}{
		{"password", "public", wire.EnclaveSecretType_SECRET_TYPE_IMPORT_DATA, nil},
		{"aes256-key", "private", wire.EnclaveSecretType_SECRET_TYPE_AES256_KEY, nil},
		{"keypair", "public", wire.EnclaveSecretType_SECRET_TYPE_RSA_KEY_PAIR,
			[]*wire.EnclaveKvPair{{Key: "pkcs_type", Value: "pkcs8"}, {Key: "bit_length", Value: "2048"}}},
		{"certificate", "public", wire.EnclaveSecretType_SECRET_TYPE_CERTIFICATE, nil},
		{"sm2-keypair", "public", wire.EnclaveSecretType_SECRET_TYPE_SM2_KEY_PAIR, nil},
		{"configuration", "public", wire.EnclaveSecretType_SECRET_TYPE_CONFIGURATIONS, items},
	} {
		s := Secret(DemoService, "secret-my-"+d.name, texts[d.name], &wire.UnifiedAttestationAttributes{StrMinIsvsvn: "0"})
		s.Spec.Type, s.Spec.Share, s.Spec.Params = d.kind, d.share, d.params
		if d.share == "private" {
			s.Spec.Readonly = "false"
		}
		secrets = append(secrets, s)
	}
	return secrets, nil
}

func pkcs8(key *rsa.PrivateKey) (private, public string, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	private = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if der, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		return "", "", err
	}
	return private, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

func selfSigned(key *rsa.PrivateKey, now time.Time) (string, error) {
	serial := sha256.Sum256(key.N.Bytes())
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:8]), Subject: pkix.Name{CommonName: "aecs.trusted.com"},
		NotBefore: now, NotAfter: now.AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	made, err := pki.SelfSign(rand.Reader, template, key)
	if err != nil {
		return "", err
	}
	return string(pki.EncodeCertificate(made.Certificate[0])), nil
}

// publicPart is what everybody may see of a shared secret.
func publicPart(s *wire.EnclaveSecret) string {
	switch s.GetSpec().GetType() {
	case wire.EnclaveSecretType_SECRET_TYPE_RSA_KEY_PAIR, wire.EnclaveSecretType_SECRET_TYPE_SM2_KEY_PAIR:
		var pair wire.AsymmetricKeyPair
		if wire.Parse(s.GetData(), &pair) == nil {
			return pair.GetPublicKey()
		}
		return ""
	case wire.EnclaveSecretType_SECRET_TYPE_CERTIFICATE:
		var certificate wire.SslCredentialsOptions
		if wire.Parse(s.GetData(), &certificate) == nil {
			return certificate.GetCertChain()
		}
		return ""
	}
	return s.GetData()
}
