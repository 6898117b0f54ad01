package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
)

// maxCRLSize bounds a CRL in any encoding. Genuine ones have less than 4 KB.
const maxCRLSize = 4 << 20

// crl is a verified revocation list.
type crl struct {
	list    *x509.RevocationList
	revoked []*big.Int // serial numbers, ascending
}

// decodeCRL gives the DER of a CRL that is DER, PEM or hexadecimal text, as PCCS and Intel's service give it.
func decodeCRL(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, errors.New("the CRL is missing")
	}
	if len(b) > maxCRLSize {
		return nil, fmt.Errorf("CRL has %d bytes, more than %d", len(b), maxCRLSize)
	}
	if b[0] == tagSequence && len(b) > 1 && b[1] >= 0x80 {
		return b, nil
	}
	text := bytes.Trim(b, " \t\r\n\x00")
	if bytes.HasPrefix(text, []byte("-----BEGIN")) {
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "X509 CRL" {
			return nil, errors.New("no PEM block \"X509 CRL\"")
		}
		return block.Bytes, nil
	}
	der := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(der, text); err != nil {
		return nil, fmt.Errorf("neither DER nor PEM nor hexadecimal text: %w", err)
	}
	return der, nil
}

// parseCRL reads a CRL and verifies that the issuer signed it.
func parseCRL(b []byte, issuer *x509.Certificate) (*crl, error) {
	der, err := decodeCRL(b)
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	switch {
	case !bytes.Equal(list.RawIssuer, issuer.RawSubject):
		return nil, fmt.Errorf("issued by %q, want %q", list.Issuer.CommonName, issuer.Subject.CommonName)
	case list.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return nil, fmt.Errorf("signature algorithm %s, want ECDSA with SHA-256", list.SignatureAlgorithm)
	case list.Number == nil || len(list.AuthorityKeyId) == 0:
		return nil, errors.New("CRL number or authority key identifier is missing")
	case list.NextUpdate.IsZero():
		return nil, errors.New("nextUpdate is missing")
	}
	for _, e := range list.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("unknown critical extension %s", e.Id)
		}
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return nil, fmt.Errorf("signature by %q: %w", issuer.Subject.CommonName, err)
	}
	c := &crl{list: list, revoked: make([]*big.Int, len(list.RevokedCertificateEntries))}
	for i := range list.RevokedCertificateEntries {
		c.revoked[i] = list.RevokedCertificateEntries[i].SerialNumber
	}
	slices.SortFunc(c.revoked, (*big.Int).Cmp)
	return c, nil
}

func (c *crl) has(serial *big.Int) bool {
	_, found := slices.BinarySearchFunc(c.revoked, serial, (*big.Int).Cmp)
	return found
}

// number is the CRL number; one of more than 64 bits counts as the largest.
func (c *crl) number() uint64 {
	if !c.list.Number.IsUint64() {
		return math.MaxUint64
	}
	return c.list.Number.Uint64()
}
