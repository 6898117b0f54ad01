package ratls

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	_ "crypto/sha512" // pubkey-hash may be SHA-384 or SHA-512
	"crypto/subtle"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// ErrNone is the error for a certificate that carries no evidence in a known extension.
var ErrNone = errors.New("it carries no evidence in a known extension")

const stepRead = "reading evidence in certificate"

// Shown is what a certificate shows.
type Shown struct {
	Evidence attest.Evidence
	// Binding is the form in which the evidence binds the certificate's key.
	Binding attest.Binding
	// NotBefore and NotAfter are the certificate's dates, which nothing but its own signature vouches for.
	NotBefore, NotAfter time.Time
}

// Read returns the evidence in a certificate, given as DER, after checking that it binds the certificate's public key,
// in whichever form. Whether the evidence is genuine is for an [attest.Verifier] to say. The error's code is
// [attest.CodeEvidence].
//
// If a certificate carries several formats the first of DICE, Occlum, Gramine counts; if that one is wrong the others
// are not tried.
func Read(der []byte) (Shown, error) {
	fail := func(hint string, err error) (Shown, error) {
		return Shown{}, attest.Errorf(attest.CodeEvidence, stepRead, hint, "%w", err)
	}
	raw, bound, shown, err := read(der)
	if err != nil {
		return fail("", err)
	}
	quote, err := sgx.ParseQuote(raw)
	if err != nil {
		return fail("", err)
	}
	if quote.ReportData() != bound { // all 64 bytes
		return fail("The certificate was copied, or made for another key.",
			errors.New("the quote's report data does not bind the certificate's public key"))
	}
	shown.Evidence = attest.Evidence{Type: quote.Type(), Raw: raw}
	return shown, nil
}

// Evidence is [Read] for peers on the wire GRPC-RATLS, which knows the forms without a label only. It refuses an
// application's certificate, so that none passes as a broker's or a workload's.
func Evidence(der []byte) (attest.Evidence, error) {
	shown, err := Read(der)
	if err == nil {
		err = shown.LegacyWire()
	}
	if err != nil {
		return attest.Evidence{}, err
	}
	return shown.Evidence, nil
}

// LegacyWire is nil if the wire GRPC-RATLS takes the certificate's form.
func (s Shown) LegacyWire() error {
	if s.Binding == attest.BindingLegacy {
		return nil
	}
	return attest.Errorf(attest.CodeEvidence, stepRead,
		"The key of app_tls serves an application's clients; it is no identity on the wire GRPC-RATLS.",
		"the certificate is that of an application")
}

// Current is nil if the certificate is valid at a time. A peer's clock may be ahead by [Leeway].
func (s Shown) Current(at time.Time) error {
	if !at.Before(s.NotBefore.Add(-Leeway)) && !at.After(s.NotAfter) {
		return nil
	}
	return attest.Errorf(attest.CodeEvidence, "checking certificate",
		"Compare the clocks of both sides; a peer that ran for long must make a new certificate.",
		"it is valid from %s to %s, and now it is %s", s.NotBefore.UTC().Format(time.RFC3339),
		s.NotAfter.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
}

// read finds the quote in a certificate and says which report data it must have to bind the key.
func read(der []byte) (quote []byte, bound attest.ReportData, s Shown, err error) {
	if len(der) > maxDER {
		return nil, bound, s, fmt.Errorf("certificate has %d bytes, at most %d are read", len(der), maxDER)
	}
	certificate, err := parse(der)
	if err != nil {
		return nil, bound, s, err
	}
	s.NotBefore, s.NotAfter = certificate.notBefore, certificate.notAfter
	if value := certificate.extensions[oidDICE.String()]; value != nil {
		quote, bound, s.Binding, err = readDICE(value, certificate.spki)
		return quote, bound, s, err
	}
	for _, oid := range []asn1.ObjectIdentifier{oidOcclum, oidMbedTLS, oidGramine} {
		if quote := certificate.extensions[oid.String()]; quote != nil {
			s.Binding = attest.BindingLegacy
			bound, err = reportdata.RATLS.Data(certificate.spki)
			return quote, bound, s, err
		}
	}
	return nil, bound, s, ErrNone
}

// certificate is what counts of an X.509 certificate here.
type certificate struct {
	spki                []byte            // DER SubjectPublicKeyInfo
	extensions          map[string][]byte // by dotted OID
	notBefore, notAfter time.Time
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
	const validity, spki = 3, 5
	if len(fields) <= spki || fields[spki].Class != asn1.ClassUniversal || fields[spki].Tag != asn1.TagSequence {
		return nil, errors.New("parsing certificate: no SubjectPublicKeyInfo")
	}
	var dates struct{ NotBefore, NotAfter time.Time }
	if rest, err := asn1.Unmarshal(fields[validity].FullBytes, &dates); err != nil || len(rest) != 0 {
		return nil, errors.New("parsing certificate: no validity")
	}
	c := &certificate{spki: fields[spki].FullBytes, extensions: map[string][]byte{},
		notBefore: dates.NotBefore, notAfter: dates.NotAfter}
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
				return nil, fmt.Errorf("certificate extension %s appears twice", id)
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
// the hash of the key. Claims with Sesame's label are taken exactly as an application's certificate has them.
func readDICE(value, spki []byte) (quote []byte, bound attest.ReportData, binding attest.Binding, err error) {
	fail := func(err error) ([]byte, attest.ReportData, attest.Binding, error) {
		return nil, attest.ReportData{}, "", fmt.Errorf("reading DICE evidence: %w", err)
	}
	var inner asn1.RawValue
	if rest, err := asn1.Unmarshal(value, &inner); err == nil && len(rest) == 0 &&
		inner.Class == asn1.ClassUniversal && inner.Tag == asn1.TagOctetString {
		value = inner.Bytes // some producers wrap the CBOR in a second OCTET STRING
	}
	var tagged cbor.RawTag
	if err := strictCBOR.Unmarshal(value, &tagged); err != nil {
		return fail(err)
	}
	if tagged.Number != tagQuote {
		return fail(fmt.Errorf("CBOR tag %d is not %d, a quote", tagged.Number, tagQuote))
	}
	var parts struct {
		_             struct{} `cbor:",toarray"`
		Quote, Claims []byte
	}
	if err := strictCBOR.Unmarshal(tagged.Content, &parts); err != nil {
		return fail(err)
	}
	if bytes.Equal(parts.Claims, reportdata.ApplicationClaims(spki)) {
		if bound, err = reportdata.Application.Data(parts.Claims); err != nil {
			return fail(err)
		}
		return parts.Quote, bound, attest.BindingApplication, nil
	}
	if err := checkClaims(parts.Claims, spki); err != nil {
		return fail(err)
	}
	hash := sha256.Sum256(parts.Claims)
	copy(bound[:], hash[:])
	return parts.Quote, bound, attest.BindingLegacy, nil
}

// checkClaims requires, of claims without our label, exactly one pubkey-hash that is the hash of the key. Claims of
// others' names say nothing to us.
func checkClaims(claims, spki []byte) error {
	const name, ours = "pubkey-hash", "sesame"
	var byName map[string]cbor.RawMessage
	if err := strictCBOR.Unmarshal(claims, &byName); err != nil {
		return fmt.Errorf("reading claims: %w", err)
	}
	if _, ok := byName[ours]; ok {
		return errors.New("the claims have Sesame's label, but not as an application's certificate of this key has it")
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
