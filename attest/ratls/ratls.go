// Package ratls makes and reads X.509 certificates that carry attestation evidence, and the TLS settings under
// which two attested peers meet (RA-TLS).
//
// A certificate is self-signed and proves nothing by itself. What counts is that genuine evidence in one of its
// extensions binds the certificate's public key, whose private key TLS makes the peer prove to hold. So a
// [PeerVerifier] checks, for every connection anew: the evidence's format, the hash of the key against the
// report data (all 64 bytes), the certificate's validity dates, then whether the evidence is genuine
// ([attest.Verifier]) and wanted ([policy.Policy]). Names, the self-signature and the chain mean nothing and are
// not looked at.
//
// Written are two kinds of certificate, both X.509 v3, ECDSA P-256, SHA-256. [NewCertificate] is for the deployed
// GRPC-RATLS peers (specification: Occlum's gRPC patch): the raw quote under OID 1.2.840.113741.1, PEM below the 16,000
// characters at which those peers corrupt their stack. [NewApplicationCertificate] is Interoperable RA-TLS (DICE tagged
// evidence), with a claim that has Sesame's label and the role. Read are both, Occlum's X.509 v1 certificates whose
// extensions Go's parser does not show, Interoperable RA-TLS of others and Gramine's older format.
//
// A certificate without the label says nothing of what its key is for, so it is taken only if that is agreed: on the
// wire GRPC-RATLS, which knows nothing else, or by an entry of a policy that says binding: legacy. A certificate with the
// label is taken nowhere but from an application. docs/protocol.md has the exact bytes.
//
// What RA-TLS cannot do: evidence in a certificate is as old as the certificate. It proves that some enclave made
// this key, not that the enclave is still patched or that the key did not leak since. Certificates made here are
// short-lived and their dates are enforced; the C++ peers' live for 20 years. Package attest/session proves
// freshness.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The forms of
// certificates are those of docs/protocol.md, each with its label; forms are added, not changed.
package ratls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// Bounds of certificates and evidence.
const (
	// DefaultValidity is how long a certificate made here lives if [Options] do not say.
	DefaultValidity = 6 * time.Hour
	// MaxValidity is the longest life that [Options] may ask for: that of an application's certificate, which is made
	// once at the boot and not renewed.
	MaxValidity = 90 * 24 * time.Hour
	// Leeway is how far a peer's clock may be ahead when it dates its certificate.
	Leeway = 5 * time.Minute

	maxPEM   = 16_000   // characters of our own certificate, exclusive: the C++ peers' buffer
	maxDER   = 64 << 10 // bytes of a peer's certificate
	minQuote = 256      // bytes; below it the C++ peers read out of bounds
)

// Options of a certificate.
type Options struct {
	Now      func() time.Time // default time.Now
	Rand     io.Reader        // default crypto/rand.Reader
	Validity time.Duration    // default DefaultValidity, at most MaxValidity
	// Names are host names and IP addresses that the certificate is for, in the eyes of clients that know nothing of
	// evidence. An attested peer does not look at them.
	Names []string
	// Failed, if not nil, is told why an [Identity] could not renew its certificate, and until when the current one is
	// used.
	Failed func(err error, end time.Time)
}

func (o Options) withDefaults() (Options, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Validity == 0 {
		o.Validity = DefaultValidity
	}
	if o.Validity < 0 || o.Validity > MaxValidity {
		return o, fmt.Errorf("validity %v is not between 0 and %v", o.Validity, MaxValidity)
	}
	return o, nil
}

// NewCertificate makes a key and a certificate whose evidence binds it, in the form of the wire GRPC-RATLS. Occlum's and
// other C++ peers can read it. The error's code is [attest.CodeAttester].
func NewCertificate(ctx context.Context, a attest.Attester, o Options) (tls.Certificate, error) {
	c, err := newCertificate(ctx, a, o, func(spki []byte) (attest.ReportData, encoder, error) {
		data, err := reportdata.RATLS.Data(spki)
		return data, func(quote []byte) (pkix.Extension, error) { return pkix.Extension{Id: oidOcclum, Value: quote}, nil }, err
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	if n := pemLength(len(c.Certificate[0])); n >= maxPEM {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, stepMake,
			"The evidence is too large for GRPC-RATLS peers; check the quoting service's certification data.",
			"the certificate has %d characters of PEM, peers take less than %d", n, maxPEM)
	}
	return c, nil
}

// NewApplicationCertificate makes a key and a certificate of an application: Interoperable RA-TLS, whose claims name the
// role. It never passes on the wire GRPC-RATLS. The evidence must be a quote of SGX or TDX. The error's code is
// [attest.CodeAttester].
func NewApplicationCertificate(ctx context.Context, a attest.Attester, o Options) (tls.Certificate, error) {
	c, err := newCertificate(ctx, a, o, func(spki []byte) (attest.ReportData, encoder, error) {
		claims := reportdata.ApplicationClaims(spki)
		data, err := reportdata.Application.Data(claims)
		return data, func(quote []byte) (pkix.Extension, error) {
			value, err := cbor.Marshal(cbor.Tag{Number: tagQuote, Content: [][]byte{quote, claims}})
			return pkix.Extension{Id: oidDICE, Value: value}, err
		}, err
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	if n := len(c.Certificate[0]); n > maxDER {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, stepMake, "Check the quoting service's certification data.",
			"the certificate has %d bytes, clients read at most %d", n, maxDER)
	}
	return c, nil
}

const stepMake = "making attested certificate"

// An encoder puts a quote into the extension of a certificate.
type encoder func(quote []byte) (pkix.Extension, error)

// newCertificate makes a certificate whose evidence is bound as bind says of the key in DER.
func newCertificate(ctx context.Context, a attest.Attester, o Options,
	bind func(spki []byte) (attest.ReportData, encoder, error)) (tls.Certificate, error) {
	const step = stepMake
	o, err := o.withDefaults()
	if err != nil {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), o.Rand)
	if err != nil {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "generating key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "encoding key: %w", err)
	}
	data, encode, err := bind(spki)
	if err != nil {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "binding key: %w", err)
	}
	evidence, err := a.Evidence(ctx, data)
	if err != nil {
		return tls.Certificate{}, &attest.Error{Code: attest.CodeAttester, Step: step, Err: err}
	}
	if len(evidence.Raw) < minQuote {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "a quote of %d bytes is too short",
			len(evidence.Raw))
	}
	extension, err := encode(evidence.Raw)
	if err != nil {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "encoding evidence: %w", err)
	}
	made, err := selfSign(key, extension, o)
	if err != nil {
		return tls.Certificate{}, attest.Errorf(attest.CodeAttester, step, "", "signing: %w", err)
	}
	return made, nil
}

func selfSign(key *ecdsa.PrivateKey, extension pkix.Extension, o Options) (tls.Certificate, error) {
	serial := make([]byte, 16)
	if _, err := io.ReadFull(o.Rand, serial); err != nil {
		return tls.Certificate{}, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive and of fixed length
	now := o.Now()
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: "RA-TLS"},
		NotBefore:             now,
		NotAfter:              now.Add(o.Validity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{extension},
	}
	pki.SetNames(template, o.Names)
	return pki.SelfSign(o.Rand, template, key)
}

// pemLength is the number of characters of a PEM certificate of n bytes of DER.
func pemLength(n int) int {
	const frame = len("-----BEGIN CERTIFICATE-----\n") + len("-----END CERTIFICATE-----\n")
	encoded := base64.StdEncoding.EncodedLen(n)
	return frame + encoded + (encoded+63)/64
}

// The extensions that carry evidence (DER contents of the OIDs in the specifications).
var (
	oidDICE    = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 9}               // TCG DICE tagged evidence
	oidOcclum  = asn1.ObjectIdentifier{1, 2, 840, 113741, 1}              // Occlum and CCZoo: raw quote
	oidGramine = asn1.ObjectIdentifier{1, 2, 840, 113741, 1337, 6}        // Gramine, as intended: raw quote
	oidMbedTLS = asn1.ObjectIdentifier{0, 6, 9, 42, 840, 113741, 1337, 6} // Gramine, as written on the wire
)
