package softsgx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/sesame-init/sesame/attest/dcap"
)

// Intel's certificate revocation list addresses. Verifiers compare and some follow them, so they are Intel's.
const (
	rootCRLAddress = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
	pckCRLAddress  = "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=%s&encoding=der"
)

// mark says in plain text what this root is (Netscape comment).
var (
	oidComment = asn1.ObjectIdentifier{2, 16, 840, 1, 113730, 1, 13}
	mark       = "Software SGX platform for development and tests. It protects nothing."
)

// ca is the name of the PCK certificate's CA in requests to a PCCS.
func (h *hardware) ca() string {
	if h.Processor {
		return dcap.ProcessorCA
	}
	return dcap.PlatformCA
}

// certify issues the four certificates, valid for ten years from a day before now.
func (p *Platform) certify(random io.Reader, now time.Time) error {
	template := func(name string, key *ecdsa.PrivateKey, crl string) (*x509.Certificate, error) {
		serial := make([]byte, 20)
		if _, err := io.ReadFull(random, serial); err != nil {
			return nil, err
		}
		serial[0] = serial[0]&0x3f | 0x40 // positive, and always 20 bytes long
		subject, err := distinguishedName(name)
		if err != nil {
			return nil, err
		}
		id, err := keyID(key)
		return &x509.Certificate{
			SerialNumber:          new(big.Int).SetBytes(serial),
			RawSubject:            subject,
			NotBefore:             now.Add(-24 * time.Hour).UTC(),
			NotAfter:              now.AddDate(10, 0, 0).UTC(),
			SignatureAlgorithm:    x509.ECDSAWithSHA256,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment,
			SubjectKeyId:          id,
			CRLDistributionPoints: []string{crl},
		}, err
	}
	issue := func(t, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
		der, err := x509.CreateCertificate(nil, t, parent, &key.PublicKey, parentKey)
		if err != nil {
			return nil, err
		}
		return x509.ParseCertificate(der)
	}
	const caUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign

	root, err := template("Intel SGX Root CA", p.keys.root, rootCRLAddress)
	if err != nil {
		return err
	}
	root.IsCA, root.MaxPathLen, root.KeyUsage = true, 1, caUsage
	root.AuthorityKeyId = root.SubjectKeyId
	comment, err := asn1.MarshalWithParams(mark, "ia5")
	if err != nil {
		return err
	}
	root.ExtraExtensions = []pkix.Extension{{Id: oidComment, Value: comment}}
	if p.certs.root, err = issue(root, root, p.keys.root, p.keys.root); err != nil {
		return err
	}

	caName := "Intel SGX PCK Platform CA"
	if p.hw.Processor {
		caName = "Intel SGX PCK Processor CA"
	}
	ca, err := template(caName, p.keys.ca, rootCRLAddress)
	if err != nil {
		return err
	}
	ca.IsCA, ca.MaxPathLenZero, ca.KeyUsage = true, true, caUsage
	if p.certs.ca, err = issue(ca, p.certs.root, p.keys.ca, p.keys.root); err != nil {
		return err
	}

	signer, err := template("Intel SGX TCB Signing", p.keys.signer, rootCRLAddress)
	if err != nil {
		return err
	}
	if p.certs.signer, err = issue(signer, p.certs.root, p.keys.signer, p.keys.root); err != nil {
		return err
	}

	pck, err := template("Intel SGX PCK Certificate", p.keys.pck, fmt.Sprintf(pckCRLAddress, p.hw.ca()))
	if err != nil {
		return err
	}
	extension, err := p.hw.extension()
	if err != nil {
		return err
	}
	pck.ExtraExtensions = []pkix.Extension{{Id: oidSGX, Value: extension}}
	p.certs.pck, err = issue(pck, p.certs.ca, p.keys.pck, p.keys.ca)
	return err
}

// distinguishedName is Intel's, in Intel's order: CN, O, L, ST, C. pkix.Name would sort it otherwise.
func distinguishedName(commonName string) ([]byte, error) {
	attribute := func(arc int, value, kind string) (pkix.RelativeDistinguishedNameSET, error) {
		raw, err := asn1.MarshalWithParams(value, kind)
		return pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, arc},
			Value: asn1.RawValue{FullBytes: raw}}}, err
	}
	var name pkix.RDNSequence
	for _, a := range []struct {
		arc         int
		value, kind string
	}{
		{3, commonName, "utf8"},
		{10, "Intel Corporation", "utf8"},
		{7, "Santa Clara", "utf8"},
		{8, "CA", "utf8"},
		{6, "US", "printable"},
	} {
		set, err := attribute(a.arc, a.value, a.kind)
		if err != nil {
			return nil, err
		}
		name = append(name, set)
	}
	return asn1.Marshal(name)
}

// keyID is method 1 of RFC 5280 §4.2.1.2.
func keyID(key *ecdsa.PrivateKey) ([]byte, error) {
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	id := sha1.Sum(public)
	return id[:], nil
}

// oidSGX is Intel's arc of the SGX extensions in PCK certificates.
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// extension is the SGX extension of the PCK certificate: five entries from the Processor CA, seven from the
// Platform CA (Intel "PCK Certificate and CRL Specification" §1.3.5).
func (h *hardware) extension() ([]byte, error) {
	var failed error
	entry := func(value any, arcs ...int) []byte {
		raw, err := asn1.Marshal(value)
		if err == nil {
			raw, err = asn1.Marshal(struct {
				ID    asn1.ObjectIdentifier
				Value asn1.RawValue
			}{append(oidSGX[:len(oidSGX):len(oidSGX)], arcs...), asn1.RawValue{FullBytes: raw}})
		}
		if err != nil {
			failed = err
		}
		return raw
	}
	sequence := func(entries ...[]byte) asn1.RawValue {
		return asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Join(entries, nil)}
	}

	var tcb [][]byte
	for i, svn := range h.CPUSVN {
		tcb = append(tcb, entry(int(svn), 2, i+1))
	}
	tcb = append(tcb, entry(int(h.PCESVN), 2, 17), entry(h.CPUSVN[:], 2, 18))

	sgxType := asn1.Enumerated(1) // scalable
	if h.Processor {
		sgxType = 0 // standard
	}
	entries := [][]byte{
		entry(h.PPID[:], 1),
		entry(sequence(tcb...), 2),
		entry([]byte{0, 0}, 3), // PCEID
		entry(h.FMSPC[:], 4),
		entry(sgxType, 5),
	}
	if !h.Processor {
		entries = append(entries, entry(h.Instance[:], 6),
			entry(sequence(entry(true, 7, 1), entry(false, 7, 2), entry(true, 7, 3)), 7))
	}
	extension, err := asn1.Marshal(sequence(entries...))
	if err == nil {
		err = failed
	}
	return extension, err
}
