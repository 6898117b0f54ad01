package ratls

import (
	"crypto"
	"crypto/sha256"
	_ "crypto/sha512" // pubkey-hash may be SHA-384 or SHA-512
	"crypto/subtle"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

// ErrNone is the error for a certificate that carries no evidence in a known extension.
var ErrNone = errors.New("it carries no evidence in a known extension")

// Evidence returns the evidence in a certificate, given as DER, after checking that it binds the certificate's
// public key. Whether the evidence is genuine is for an [attest.Verifier] to say. The error's code is
// [attest.CodeEvidence].
//
// Where a certificate carries several formats the first of DICE, Occlum, Gramine counts; if that one is wrong
// the others are not tried.
func Evidence(der []byte) (attest.Evidence, error) {
	const step = "reading evidence in certificate"
	raw, bound, err := read(der)
	if err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeEvidence, step, "", "%w", err)
	}
	quote, err := sgx.ParseQuote(raw)
	if err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeEvidence, step, "", "%w", err)
	}
	if quote.ReportData() != bound {
		return attest.Evidence{}, attest.Errorf(attest.CodeEvidence, step,
			"The certificate was copied, or made for another key.",
			"the quote's report data does not bind the certificate's public key")
	}
	return attest.Evidence{Type: quote.Type(), Raw: raw}, nil
}

// read finds the quote in a certificate and says which report data it must have to bind the key.
func read(der []byte) (quote []byte, bound attest.ReportData, err error) {
	if len(der) > maxDER {
		return nil, bound, fmt.Errorf("certificate has %d bytes, at most %d are read", len(der), maxDER)
	}
	certificate, err := parse(der)
	if err != nil {
		return nil, bound, err
	}
	if value := certificate.extensions[oidDICE.String()]; value != nil {
		return readDICE(value, certificate.spki)
	}
	for _, oid := range []asn1.ObjectIdentifier{oidOcclum, oidMbedTLS, oidGramine} {
		if quote := certificate.extensions[oid.String()]; quote != nil {
			return quote, keyData(certificate.spki), nil
		}
	}
	return nil, bound, ErrNone
}

// certificate is what counts of an X.509 certificate here.
type certificate struct {
	spki       []byte            // DER SubjectPublicKeyInfo
	extensions map[string][]byte // by dotted OID
}

// parse reads a certificate irrespective of its version: Occlum's say v1 and have extensions all the same, which
// crypto/x509 does not show.
func parse(der []byte) (*certificate, error) {
	var outer struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &outer); err != nil {
		return nil, fmt.Errorf("parsing certificate: %w", err)
	} else if len(rest) != 0 {
		return nil, errors.New("bytes follow the certificate")
	}
	fields, err := elements(outer.TBS.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing certificate: %w", err)
	}
	// [0] version OPTIONAL, serial, signature, issuer, validity, subject, SubjectPublicKeyInfo, then optional
	// context-specific fields (RFC 5280, 4.1).
	if len(fields) > 0 && contextTag(fields[0], 0) {
		fields = fields[1:]
	}
	const spki = 5
	if len(fields) <= spki || fields[spki].Class != asn1.ClassUniversal || fields[spki].Tag != asn1.TagSequence {
		return nil, errors.New("parsing certificate: no SubjectPublicKeyInfo")
	}
	c := &certificate{spki: fields[spki].FullBytes, extensions: map[string][]byte{}}
	seen := false
	for _, field := range fields[spki+1:] {
		if !contextTag(field, 3) {
			continue
		}
		if seen {
			return nil, errors.New("parsing certificate: two lists of extensions")
		}
		seen = true
		var list []pkix.Extension
		if rest, err := asn1.Unmarshal(field.Bytes, &list); err != nil {
			return nil, fmt.Errorf("parsing certificate extensions: %w", err)
		} else if len(rest) != 0 {
			return nil, errors.New("bytes follow the certificate extensions")
		}
		for _, extension := range list {
			id := extension.Id.String()
			if _, twice := c.extensions[id]; twice {
				return nil, fmt.Errorf("certificate extension %s stands there twice", id)
			}
			c.extensions[id] = extension.Value
		}
	}
	return c, nil
}

func contextTag(v asn1.RawValue, tag int) bool {
	return v.Class == asn1.ClassContextSpecific && v.Tag == tag
}

// elements splits the contents of a DER sequence.
func elements(b []byte) ([]asn1.RawValue, error) {
	var out []asn1.RawValue
	for len(b) > 0 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(b, &v)
		if err != nil {
			return nil, err
		}
		out, b = append(out, v), rest
	}
	return out, nil
}

// tagQuote is the CBOR tag of an Intel TEE quote in DICE tagged evidence (Interoperable RA-TLS, evidence formats).
const tagQuote = 60000

// strictCBOR refuses what would let two readers see different claims.
var strictCBOR = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		UTF8:             cbor.UTF8RejectInvalid,
		MaxNestedLevels:  8,
		MaxArrayElements: 64,
		MaxMapPairs:      64,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
}()

// readDICE reads 60000([quote, claims]); the report data must be the hash of the serialized claims, and these name
// the hash of the key.
func readDICE(value, spki []byte) (quote []byte, bound attest.ReportData, err error) {
	var inner asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &inner); err == nil && len(rest) == 0 &&
		inner.Class == asn1.ClassUniversal && inner.Tag == asn1.TagOctetString {
		value = inner.Bytes // some producers wrap the CBOR in a second OCTET STRING
	}
	var tagged cbor.RawTag
	if err := strictCBOR.Unmarshal(value, &tagged); err != nil {
		return nil, bound, fmt.Errorf("reading DICE evidence: %w", err)
	}
	if tagged.Number != tagQuote {
		return nil, bound, fmt.Errorf("reading DICE evidence: CBOR tag %d is not %d, a quote", tagged.Number, tagQuote)
	}
	var parts struct {
		_             struct{} `cbor:",toarray"`
		Quote, Claims []byte
	}
	if err := strictCBOR.Unmarshal(tagged.Content, &parts); err != nil {
		return nil, bound, fmt.Errorf("reading DICE evidence: %w", err)
	}
	if err := checkClaims(parts.Claims, spki); err != nil {
		return nil, bound, fmt.Errorf("reading DICE evidence: %w", err)
	}
	hash := sha256.Sum256(parts.Claims)
	copy(bound[:], hash[:])
	return parts.Quote, bound, nil
}

// checkClaims requires exactly one pubkey-hash that is the hash of the key. Claims of other names say nothing to us.
func checkClaims(claims, spki []byte) error {
	const name = "pubkey-hash"
	var byName map[string]cbor.RawMessage
	if err := strictCBOR.Unmarshal(claims, &byName); err != nil {
		return fmt.Errorf("reading claims: %w", err)
	}
	claim, ok := byName[name]
	if !ok {
		return errors.New("the claims name no " + name)
	}
	var wrapped []byte
	if err := strictCBOR.Unmarshal(claim, &wrapped); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	var entry struct {
		_         struct{} `cbor:",toarray"`
		Algorithm uint64
		Hash      []byte
	}
	if err := strictCBOR.Unmarshal(wrapped, &entry); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	algorithms := map[uint64]crypto.Hash{1: crypto.SHA256, 7: crypto.SHA384, 8: crypto.SHA512}
	algorithm, ok := algorithms[entry.Algorithm]
	if !ok {
		return fmt.Errorf("%s has the unknown hash algorithm %d", name, entry.Algorithm)
	}
	h := algorithm.New()
	h.Write(spki)
	if subtle.ConstantTimeCompare(h.Sum(nil), entry.Hash) != 1 {
		return fmt.Errorf("%s is not the hash of the certificate's public key", name)
	}
	return nil
}
