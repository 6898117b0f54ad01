package attack

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// BadPeers are the certificates of peers that must not get in, by what the log must say about them.
func BadPeers(t testing.TB, platform *softsgx.Platform) map[string]*tls.Certificate {
	t.Helper()
	changed := func(at int) *tls.Certificate {
		key := NewKey(t, elliptic.P256())
		quote := QuoteFor(t, platform, key)
		quote[at] ^= 1
		return SelfSigned(t, key, quote)
	}
	enclave := func(of *softsgx.Platform, change func(*attest.SGXClaims)) *tls.Certificate {
		body := brokertest.Workload()
		change(&body.SGXClaims)
		c := brokertest.Certificate(t, of, body)
		return &c
	}
	past := func() time.Time { return brokertest.Now.Add(-7 * time.Hour) }
	expired, err := ratls.NewCertificate(context.Background(), platform.Attester(brokertest.Workload()),
		ratls.Options{Now: past})
	if err != nil {
		t.Fatal(err)
	}
	application, err := ratls.NewApplicationCertificate(context.Background(), platform.Attester(brokertest.Workload()),
		ratls.Options{Now: brokertest.Clock})
	if err != nil {
		t.Fatal(err)
	}
	stranger := brokertest.Platform(t, softsgx.Options{})
	key := NewKey(t, elliptic.P256())
	return map[string]*tls.Certificate{
		"no evidence":                SelfSigned(t, key, nil),
		"does not bind":              SelfSigned(t, key, QuoteFor(t, platform, NewKey(t, elliptic.P256()))),
		"root":                       enclave(stranger, func(*attest.SGXClaims) {}),
		"mr_enclave":                 enclave(platform, func(c *attest.SGXClaims) { c.MREnclave[5] ^= 1 }),
		"debug environment":          enclave(platform, func(c *attest.SGXClaims) { c.Attributes |= attest.AttributeDebug }),
		"config_id":                  enclave(platform, func(c *attest.SGXClaims) { c.ConfigID[0] = 1 }),
		"it is valid from":           &expired,
		"that of an application":     &application,
		"reading evidence":           changed(0),   // the version
		"signature":                  changed(436), // the signature over the report
		"peer refused":               changed(130), // MRENCLAVE, after signing
		"does not bind the certific": changed(370), // the report data
	}
}

// A Forger is an attester that makes evidence which must not pass.
type Forger struct {
	attest.Attester
	Change func(attest.Evidence) attest.Evidence     // of what was made; nil: nothing
	Data   func(attest.ReportData) attest.ReportData // that evidence is made about; nil: what was asked
}

// Evidence implements [attest.Attester].
func (f Forger) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if f.Data != nil {
		data = f.Data(data)
	}
	e, err := f.Attester.Evidence(ctx, data)
	if err == nil && f.Change != nil {
		e.Raw = bytes.Clone(e.Raw)
		e = f.Change(e)
	}
	return e, err
}

// BadEnclaves are attesters whose sessions must be refused.
func BadEnclaves(t testing.TB, platform *softsgx.Platform) map[string]attest.Attester {
	good := platform.Attester(brokertest.Workload())
	debug, other := brokertest.Workload(), brokertest.Enclave(0xab, 1, 2)
	debug.Attributes |= attest.AttributeDebug
	flip := func(at int) attest.Attester {
		return Forger{Attester: good, Change: func(e attest.Evidence) attest.Evidence { e.Raw[at] ^= 1; return e }}
	}
	return map[string]attest.Attester{
		"another platform": brokertest.Platform(t, softsgx.Options{}).Attester(brokertest.Workload()),
		"debug":            platform.Attester(debug),
		"other enclave":    platform.Attester(other),
		"replay":           Forger{Attester: good, Data: func(attest.ReportData) attest.ReportData { return attest.ReportData{1} }},
		"changed report":   flip(130),
		"bad signature":    flip(436),
		"no version":       flip(0),
		"cut off":          Forger{Attester: good, Change: func(e attest.Evidence) attest.Evidence { e.Raw = e.Raw[:100]; return e }},
		"as another type":  Forger{Attester: good, Change: func(e attest.Evidence) attest.Evidence { e.Type = attest.TDX; return e }},
	}
}

// SelfSigned is a certificate of a key with an extension under Occlum's OID.
func SelfSigned(t testing.TB, key crypto.Signer, quote []byte) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: brokertest.Now, NotAfter: brokertest.Now.Add(time.Hour),
	}
	if quote != nil {
		oid := asn1.ObjectIdentifier{1, 2, 840, 113741, 1}
		template.ExtraExtensions = []pkix.Extension{{Id: oid, Value: quote}}
	}
	made, err := pki.SelfSign(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return &made
}

// NewKey is a fresh key.
func NewKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// QuoteFor is the workload's quote for a key.
func QuoteFor(t testing.TB, platform *softsgx.Platform, key crypto.Signer) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	body := brokertest.Workload()
	hash := sha256.Sum256(spki)
	copy(body.ReportData[:], hash[:])
	quote, err := platform.Quote(body)
	if err != nil {
		t.Fatal(err)
	}
	return quote
}
