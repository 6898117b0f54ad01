package dcap

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

// seeds are the files of a name in the vectors: those beside this file and, if the machine has them, the
// larger set.
func seeds(f *testing.F, name string) [][]byte {
	f.Helper()
	patterns := []string{filepath.Join("testdata", "vectors", "*", "*", name)}
	if root := os.Getenv("SESAME_VECTORS"); root != "" {
		patterns = append(patterns, filepath.Join(root, "dcap", "*", "*", name))
	}
	var out [][]byte
	seen := map[[32]byte]bool{}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			if sum := sha256.Sum256(b); !seen[sum] {
				seen[sum] = true
				out = append(out, b)
			}
		}
	}
	if len(out) == 0 {
		f.Fatalf("no seeds of name %s", name)
	}
	return out
}

// onlyCollateral is a Source of one value.
type onlyCollateral Collateral

func (c *onlyCollateral) Collateral(context.Context, Request) (*Collateral, error) {
	return (*Collateral)(c), nil
}

// FuzzVerify changes quotes: what is accepted must say what one of the genuine quotes says.
func FuzzVerify(f *testing.F) {
	dir := filepath.Join("testdata", "vectors", "dcap-qvl", "f8b81014_SGX3_00A067110000_eval17_39a7da")
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	v := NewVerifier(Config{AllowTrailing: true, Source: &onlyCollateral{
		TCBInfo: read("tcb_info.json"), TCBInfoChain: read("tcb_chain.pem"),
		QEIdentity: read("qe_identity.json"), QEIdentityChain: read("qe_chain.pem"),
		PCKCRL: read("pck_crl.der"), PCKCRLChain: read("pck_crl_chain.pem"), RootCACRL: read("root_ca_crl.der"),
	}})
	at := time.Unix(1751624924, 0)
	signed := map[string]bool{}
	for _, b := range seeds(f, "quote.dat") {
		f.Add(b)
		q, err := sgx.ParseQuote(b)
		if err != nil {
			continue
		}
		if _, err := v.Verify(context.Background(), attest.Evidence{Type: q.Type(), Raw: b}, at); err == nil {
			signed[string(q.Signed)] = true
		}
	}
	if len(signed) == 0 {
		f.Fatal("no seed is genuine")
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, typ := range []attest.EvidenceType{attest.SGX, attest.TDX} {
			c, err := v.Verify(context.Background(), attest.Evidence{Type: typ, Raw: raw}, at)
			if err != nil {
				if StepOf(err) == "" {
					t.Errorf("no step in %v", err)
				}
				continue
			}
			q, err := sgx.ParseQuote(raw)
			if err != nil || c.Type != typ || !signed[string(q.Signed)] {
				t.Errorf("accepted a quote that nobody signed: %x", raw)
			}
		}
	})
}

// FuzzPCKExtension compares with encoding/asn1: what is read must be DER throughout.
func FuzzPCKExtension(f *testing.F) {
	for _, chain := range seeds(f, "pck_chain.pem") {
		block, _ := pem.Decode(chain)
		if block == nil {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			f.Fatal(err)
		}
		for _, e := range cert.Extensions {
			if e.Id.Equal(oidSGX) {
				f.Add(e.Value)
			}
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		e, err := ParsePCKExtension(der)
		if err != nil {
			return
		}
		var fields []struct {
			ID    asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		rest, err := asn1.Unmarshal(der, &fields)
		if err != nil || len(rest) != 0 || len(fields) != 5 && len(fields) != 7 {
			t.Fatalf("encoding/asn1 does not read it: %v, %d fields", err, len(fields))
		}
		var tcb []struct {
			ID    asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if _, err := asn1.Unmarshal(fields[1].Value.FullBytes, &tcb); err != nil || len(tcb) != 18 {
			t.Fatalf("TCB: %v, %d fields", err, len(tcb))
		}
		for i, svn := range e.Components {
			var n int
			if _, err := asn1.Unmarshal(tcb[i].Value.FullBytes, &n); err != nil || n != int(svn) {
				t.Errorf("component %d is %d, encoding/asn1 has %d (%v)", i+1, svn, n, err)
			}
		}
	})
}

// FuzzTCBInfo compares with encoding/json: what is read must be JSON.
func FuzzTCBInfo(f *testing.F) {
	for _, b := range seeds(f, "tcb_info.json") {
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		body := text
		if d, err := parseDocument([]byte(text), "tcbInfo"); err == nil {
			body = d.body
			if !json.Valid([]byte(text)) {
				t.Error("read a document that is not JSON")
			}
		}
		info, err := parseTCBInfo(body)
		if err != nil {
			return
		}
		if !json.Valid([]byte(body)) {
			t.Error("read a TCB info that is not JSON")
		}
		p := new(platform)
		svn := [16]byte{3, 1}
		for i := range info.levels {
			l := &info.levels[i]
			p.ext.Components, p.ext.PCESVN = l.sgx, l.pceSVN
			e := &Endorsements{tcb: info}
			if got := e.platformLevel(p, &l.tdx); got == nil {
				t.Errorf("a platform exactly at level %d reaches none", i)
			}
		}
		if m, err := (&Endorsements{tcb: info}).tdxModule(svn); err == nil && m == nil {
			t.Error("neither module nor error")
		}
	})
}

// FuzzQEIdentity compares with encoding/json, too.
func FuzzQEIdentity(f *testing.F) {
	for _, b := range seeds(f, "qe_identity.json") {
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		body := text
		if d, err := parseDocument([]byte(text), "enclaveIdentity"); err == nil {
			body = d.body
		}
		q, err := parseQEIdentity(body)
		if err != nil {
			return
		}
		if !json.Valid([]byte(body)) {
			t.Error("read an identity that is not JSON")
		}
		var report [sgx.ReportBodySize]byte
		parsed, err := sgx.ParseReportBody(report[:])
		if err != nil {
			t.Fatal(err)
		}
		if q.match(&parsed, report[:]) == nil && q.mrSigner != [32]byte{} {
			t.Error("an empty report matches a named signer")
		}
	})
}

// FuzzCRL reads CRLs in all encodings: one that is accepted must be one of the genuine ones.
func FuzzCRL(f *testing.F) {
	genuine := map[string]bool{}
	for _, name := range []string{"pck_crl.der", "root_ca_crl.der"} {
		for _, b := range seeds(f, name) {
			f.Add(b)
			if der, err := decodeCRL(b); err == nil {
				genuine[string(der)] = true
			}
		}
	}
	issuers := []*x509.Certificate{IntelRoot()}
	for _, chain := range seeds(f, "pck_crl_chain.pem") {
		block, _ := pem.Decode(chain)
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			f.Fatal(err)
		}
		issuers = append(issuers, ca)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, issuer := range issuers {
			c, err := parseCRL(b, issuer)
			if err != nil {
				continue
			}
			if !genuine[string(c.list.Raw)] {
				t.Errorf("accepted a CRL that %q did not sign", issuer.Subject.CommonName)
			}
		}
	})
}
