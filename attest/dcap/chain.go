package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// maxChainSize bounds a PEM chain. Genuine ones have less than 4 KB.
const maxChainSize = 32 << 10

// maxIssued bounds how many verified CA and signing certificates are remembered. Intel has a handful.
const maxIssued = 64

// anchor is a trusted root.
type anchor struct {
	cert *x509.Certificate
	key  *ecdsa.PublicKey
}

// trust remembers the trusted roots, and the verified certificates directly below them, so that none is parsed or verified
// twice.
type trust struct {
	anchors []*anchor

	mu     sync.Mutex
	issued map[string]*issuedCertificate // by DER
}

// issuedCertificate is a certificate whose signature by the anchor was verified, or another issue of the anchor itself.
type issuedCertificate struct {
	cert   *x509.Certificate
	key    *ecdsa.PublicKey
	anchor *anchor
}

func newTrust(roots []*x509.Certificate) (*trust, error) {
	if len(roots) == 0 {
		roots = []*x509.Certificate{IntelRoot()}
	}
	t := &trust{issued: make(map[string]*issuedCertificate)}
	for _, root := range roots {
		if err := checkCertificate(root, "SGX Root CA", true); err != nil {
			return nil, fmt.Errorf("trusted root %q: %w", root.Subject.CommonName, err)
		}
		t.anchors = append(t.anchors, &anchor{cert: root, key: root.PublicKey.(*ecdsa.PublicKey)})
	}
	return t, nil
}

// root finds the anchor whose key the DER certificate carries. Intel issued its root twice, with the same name and key.
// The copy that is not pinned is accepted if the pinned key signed it.
func (t *trust) root(der []byte) (*issuedCertificate, error) {
	for _, a := range t.anchors {
		if bytes.Equal(der, a.cert.Raw) {
			return &issuedCertificate{cert: a.cert, key: a.key, anchor: a}, nil
		}
	}
	if known := t.recall(der); known != nil && bytes.Equal(known.cert.RawSubject, known.cert.RawIssuer) {
		return known, nil
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("root certificate: %w", err)
	}
	for _, a := range t.anchors {
		if !bytes.Equal(cert.RawSubjectPublicKeyInfo, a.cert.RawSubjectPublicKeyInfo) {
			continue
		}
		if err := checkCertificate(cert, "SGX Root CA", true); err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
		if err := checkIssued(cert, a); err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
		return t.remember(&issuedCertificate{cert: cert, key: a.key, anchor: a}), nil
	}
	return nil, fmt.Errorf("the chain ends in %q, whose key is not that of a trusted root", cert.Subject.CommonName)
}

// below verifies that the DER certificate was issued by the anchor to a subject whose name contains cn.
func (t *trust) below(a *anchor, der []byte, cn string, ca bool) (*issuedCertificate, error) {
	known := t.recall(der)
	if known == nil {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		known = &issuedCertificate{cert: cert, anchor: a}
		if err := checkCertificate(cert, cn, ca); err != nil {
			return nil, err
		}
		if err := checkIssued(cert, a); err != nil {
			return nil, err
		}
		known.key = cert.PublicKey.(*ecdsa.PublicKey)
		return t.remember(known), nil
	}
	if known.anchor != a {
		return nil, errors.New("certificate and root of the chain do not belong together")
	}
	return known, checkCertificate(known.cert, cn, ca)
}

func (t *trust) recall(der []byte) *issuedCertificate {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.issued[string(der)]
}

func (t *trust) remember(i *issuedCertificate) *issuedCertificate {
	t.mu.Lock()
	defer t.mu.Unlock()
	makeRoom(t.issued, maxIssued)
	t.issued[string(i.cert.Raw)] = i
	return i
}

func checkIssued(cert *x509.Certificate, a *anchor) error {
	if !bytes.Equal(cert.RawIssuer, a.cert.RawSubject) {
		return fmt.Errorf("%q was not issued by %q", cert.Subject.CommonName, a.cert.Subject.CommonName)
	}
	if err := cert.CheckSignatureFrom(a.cert); err != nil {
		return fmt.Errorf("%q: signature by %q: %w", cert.Subject.CommonName, a.cert.Subject.CommonName, err)
	}
	return nil
}

// checkCertificate makes sure of what every certificate of this PKI has in common.
func checkCertificate(c *x509.Certificate, cn string, ca bool) error {
	key, isECDSA := c.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !strings.Contains(c.Subject.CommonName, cn):
		return fmt.Errorf("subject is %q, want a name with %q", c.Subject.CommonName, cn)
	case c.Version != 3:
		return fmt.Errorf("%q: X.509 version %d, want 3", c.Subject.CommonName, c.Version)
	case !isECDSA || key.Curve != elliptic.P256():
		return fmt.Errorf("%q: the key is not on P-256", c.Subject.CommonName)
	case c.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return fmt.Errorf("%q: signature algorithm %s, want ECDSA with SHA-256", c.Subject.CommonName, c.SignatureAlgorithm)
	case len(c.UnhandledCriticalExtensions) != 0:
		return fmt.Errorf("%q: unknown critical extension %s", c.Subject.CommonName, c.UnhandledCriticalExtensions[0])
	case len(c.AuthorityKeyId) == 0 || len(c.SubjectKeyId) == 0 || len(c.CRLDistributionPoints) == 0 || c.KeyUsage == 0 ||
		!c.BasicConstraintsValid:
		return fmt.Errorf("%q: one of the extensions AKI, SKI, CRL distribution points, key usage, basic constraints is missing",
			c.Subject.CommonName)
	case c.IsCA != ca:
		return fmt.Errorf("%q: CA is %t, want %t", c.Subject.CommonName, c.IsCA, ca)
	}
	return nil
}

// decodeChain splits a PEM chain into its DER certificates. Whitespace and NUL bytes may follow the last one.
func decodeChain(chain []byte, want int) ([][]byte, error) {
	if len(chain) > maxChainSize {
		return nil, fmt.Errorf("chain has %d bytes, more than %d", len(chain), maxChainSize)
	}
	var out [][]byte
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(out) != want || len(bytes.Trim(rest, " \t\r\n\x00")) != 0 {
				return nil, fmt.Errorf("chain has %d PEM certificates and then %d other bytes, want %d certificates",
					len(out), len(rest), want)
			}
			return out, nil
		}
		if block.Type != "CERTIFICATE" || len(out) == want {
			return nil, fmt.Errorf("chain has a PEM block %q too many, want %d certificates", block.Type, want)
		}
		out = append(out, block.Bytes)
	}
}

// issuerChain verifies a chain of two certificates in any order: the subject named cn and its root.
func (t *trust) issuerChain(chain []byte, cn string, ca bool) (leaf, root *issuedCertificate, err error) {
	ders, err := decodeChain(chain, 2)
	if err != nil {
		return nil, nil, err
	}
	root, err = t.root(ders[1])
	if err != nil {
		var swapped error
		if root, swapped = t.root(ders[0]); swapped != nil {
			return nil, nil, err
		}
		ders[0], ders[1] = ders[1], ders[0]
	}
	leaf, err = t.below(root.anchor, ders[0], cn, ca)
	return leaf, root, err
}

// platform is a verified PCK chain and what it says.
type platform struct {
	pck     *x509.Certificate
	key     *ecdsa.PublicKey
	ca      *issuedCertificate
	caName  string // PlatformCA or ProcessorCA
	ext     PCKExtension
	periods periods
}

// verifyPCKChain verifies the chain of PCK certificate, CA and root, in this order.
func (t *trust) verifyPCKChain(chain []byte) (*platform, error) {
	const hint = "The chain in the quote does not end in a trusted root; a quote of a software platform needs that platform's root."
	ders, err := decodeChain(chain, 3)
	if err != nil {
		return nil, notGenuine(StepCertificationData, "", "%w", err)
	}
	root, err := t.root(ders[2])
	if err != nil {
		return nil, notGenuine(StepPCKChain, hint, "%w", err)
	}
	p := new(platform)
	if p.ca, err = t.below(root.anchor, ders[1], "CA", true); err != nil {
		return nil, notGenuine(StepPCKChain, "", "%w", err)
	}
	name := p.ca.cert.Subject.CommonName
	if p.caName = caOf(name); p.caName == "" {
		return nil, notGenuine(StepPCKChain, "", "%q is neither the platform nor the processor CA", name)
	}
	if p.pck, err = x509.ParseCertificate(ders[0]); err != nil {
		return nil, notGenuine(StepPCKChain, "", "PCK certificate: %w", err)
	}
	if err := checkCertificate(p.pck, "SGX PCK Certificate", false); err != nil {
		return nil, notGenuine(StepPCKChain, "", "%w", err)
	}
	if err := checkIssued(p.pck, &anchor{cert: p.ca.cert}); err != nil {
		return nil, notGenuine(StepPCKChain, "", "%w", err)
	}
	p.key = p.pck.PublicKey.(*ecdsa.PublicKey)
	if p.ext, err = PCKExtensionOf(p.pck); err != nil {
		return nil, notGenuine(StepPCKExtension, "", "%w", err)
	}
	p.periods.add("PCK certificate", p.pck.NotBefore, p.pck.NotAfter)
	p.periods.add("PCK issuing CA", p.ca.cert.NotBefore, p.ca.cert.NotAfter)
	p.periods.add("root of the PCK chain", root.cert.NotBefore, root.cert.NotAfter)
	return p, nil
}

// period is the time in which one object is valid, both ends included.
type period struct {
	name                string
	notBefore, notAfter time.Time
}

type periods []period

func (p *periods) add(name string, notBefore, notAfter time.Time) {
	*p = append(*p, period{name, notBefore, notAfter})
}

// check names the first object that is not valid at a time.
func (p periods) check(at time.Time) error {
	for i := range p {
		if at.Before(p[i].notBefore) {
			return fmt.Errorf("%s is valid only from %s, and it is %s", p[i].name,
				p[i].notBefore.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
		}
		if at.After(p[i].notAfter) {
			return fmt.Errorf("%s expired at %s, and it is %s", p[i].name,
				p[i].notAfter.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
		}
	}
	return nil
}

// expiry is the earliest end.
func (p periods) expiry() time.Time {
	var end time.Time
	for i := range p {
		if i == 0 || p[i].notAfter.Before(end) {
			end = p[i].notAfter
		}
	}
	return end
}

// newest is the latest beginning: all of these objects exist, so no honest clock is before it.
func (p periods) newest() time.Time {
	var newest time.Time
	for i := range p {
		if p[i].notBefore.After(newest) {
			newest = p[i].notBefore
		}
	}
	return newest
}

// makeRoom drops any one entry of a full map.
func makeRoom[K comparable, V any](m map[K]V, limit int) {
	if len(m) < limit {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}
