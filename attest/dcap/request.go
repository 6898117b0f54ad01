package dcap

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/sesame-init/sesame/attest/sgx"
)

// RequestFor says which collateral belongs to a quote, by the PCK certificate in it. Nothing is verified: it is for
// a peer that sends its own collateral with its own evidence.
func RequestFor(quote []byte) (Request, error) {
	q, err := sgx.ParseQuote(quote)
	if err != nil {
		return Request{}, err
	}
	if q.CertType != sgx.CertPCKChain {
		return Request{}, fmt.Errorf("the quote does not carry its PCK chain: certification data of type %d", q.CertType)
	}
	ders, err := decodeChain(q.CertData, 3)
	if err != nil {
		return Request{}, err
	}
	pck, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return Request{}, fmt.Errorf("PCK certificate: %w", err)
	}
	extension, err := PCKExtensionOf(pck)
	if err != nil {
		return Request{}, err
	}
	r := Request{TEE: q.Type(), FMSPC: extension.FMSPC}
	if r.CA = caOf(pck.Issuer.CommonName); r.CA == "" {
		return Request{}, errors.New("the PCK certificate is neither the platform's nor the processor CA's")
	}
	return r, nil
}

// caOf is the word for the CA with a common name, "" for no CA of PCK certificates.
func caOf(commonName string) string {
	switch {
	case strings.Contains(commonName, "Platform CA"):
		return PlatformCA
	case strings.Contains(commonName, "Processor CA"):
		return ProcessorCA
	}
	return ""
}
