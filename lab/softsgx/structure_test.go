package softsgx_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/softsgx"
)

func certificates(t *testing.T, chain []byte) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			return certs
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
}

// shape is what must be alike in two certificates of one kind.
func shape(c *x509.Certificate) []string {
	lines := []string{fmt.Sprintf("version %d, %v, %x, usage %b, CA %v %d", c.Version, c.SignatureAlgorithm, c.RawSubject,
		c.KeyUsage, c.IsCA, c.MaxPathLen), fmt.Sprint(c.CRLDistributionPoints)}
	for _, e := range c.Extensions {
		if e.Id.String() == "2.16.840.1.113730.1.13" {
			continue // the comment that says what it is
		}
		line := fmt.Sprintf("%v critical %v", e.Id, e.Critical)
		if e.Id.String() == "1.2.840.113741.1.13.1" {
			line += fmt.Sprintf(" %d bytes", len(e.Value))
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// keys are the names in a JSON document, in the order in which they are first met.
func keys(t *testing.T, document []byte) []string {
	t.Helper()
	var names []string
	depthIsObject, expectKey := []bool{}, false
	for d := json.NewDecoder(bytes.NewReader(document)); ; {
		token, err := d.Token()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		switch v := token.(type) {
		case json.Delim:
			if v == '{' || v == '[' {
				depthIsObject = append(depthIsObject, v == '{')
			} else {
				depthIsObject = depthIsObject[:len(depthIsObject)-1]
			}
			expectKey = len(depthIsObject) > 0 && depthIsObject[len(depthIsObject)-1]
		case string:
			if expectKey && !slices.Contains(names, v) {
				names = append(names, v)
			}
			expectKey = !expectKey && depthIsObject[len(depthIsObject)-1]
		default:
			expectKey = depthIsObject[len(depthIsObject)-1]
		}
	}
}

// TestStructureIsThatOfAcceptedVectors compares with a synthetic platform whose quotes Intel's library accepts.
func TestStructureIsThatOfAcceptedVectors(t *testing.T) {
	dir := testenv.Vectors(t, "dcap", "synthetic-softsgx", "platform_UpToDate")
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p := newPlatform(t, softsgx.Options{TCB: softsgx.TCB{Advisories: []string{"INTEL-SA-00615"}}})
	parse := func(raw []byte) *sgx.Quote {
		q, err := sgx.ParseQuote(raw)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	got, want := parse(quote(t, p, enclave)), parse(read(dir, "quote.dat"))
	gotHeader, wantHeader := got.Header, want.Header
	gotHeader.UserData = wantHeader.UserData
	if gotHeader != wantHeader {
		t.Errorf("header is %+v, want %+v", gotHeader, wantHeader)
	}
	gotQE, wantQE := got.QEReport, want.QEReport
	gotQE.MREnclave, gotQE.ReportData = wantQE.MREnclave, wantQE.ReportData
	if gotQE != wantQE {
		t.Errorf("QE report is %+v, want %+v", gotQE, wantQE)
	}
	if got.CertType != want.CertType || !bytes.Equal(got.QEAuthData, want.QEAuthData) || len(got.Trailing) != 0 {
		t.Errorf("certification data type %d, QE auth data %x", got.CertType, got.QEAuthData)
	}

	c := p.Collateral()
	for name, chains := range map[string][2][]byte{
		"PCK chain":        {got.CertData, want.CertData},
		"TCB issuer chain": {c.TCBInfoChain, read(dir, "tcb_chain.pem")},
		"PCK CRL chain":    {c.PCKCRLChain, read(dir, "pck_crl_chain.pem")},
	} {
		got, want := certificates(t, chains[0]), certificates(t, chains[1])
		if len(got) != len(want) {
			t.Fatalf("%s has %d certificates, want %d", name, len(got), len(want))
		}
		for i := range got {
			if g, w := shape(got[i]), shape(want[i]); !slices.Equal(g, w) {
				t.Errorf("%s: certificate %d is\n%q, want\n%q", name, i, g, w)
			}
		}
	}
	if got, want := keys(t, c.TCBInfo), keys(t, read(dir, "tcb_info.json")); !slices.Equal(got, want) {
		t.Errorf("TCB info has keys\n%q, want\n%q", got, want)
	}
	if got, want := keys(t, c.QEIdentity), keys(t, read(dir, "qe_identity.json")); !slices.Equal(got, want) {
		t.Errorf("QE identity has keys\n%q, want\n%q", got, want)
	}
}

func TestDebugEnclaveIsGenuineButNotWanted(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	body := enclave
	body.Attributes |= attest.AttributeDebug
	claims, err := verify(p, p.RootCA(), quote(t, p, body), now)
	if err != nil {
		t.Fatal(err)
	}
	wanted := policy.Policy{SGX: []policy.SGX{{MREnclave: enclave.MREnclave[:]}}}
	if err := wanted.Appraise(claims, now).Err(); attest.CodeOf(err) != attest.CodePolicy {
		t.Errorf("a debug enclave: %v, want a refusal of class policy", err)
	}
	wanted.SGX[0].Debug = true
	if err := wanted.Appraise(claims, now).Err(); err != nil {
		t.Errorf("a debug enclave that is wanted: %v", err)
	}
}

func TestPCCSAnswersAsIntelsDoes(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	q, err := sgx.ParseQuote(quote(t, p, enclave))
	if err != nil {
		t.Fatal(err)
	}
	c := p.Collateral()
	encode := func(chain []byte) string { return strings.ReplaceAll(url.QueryEscape(string(chain)), "+", "%20") }
	tcbChain, crlChain := encode(c.TCBInfoChain), encode(c.PCKCRLChain)
	crlHex, rootHex := hex.EncodeToString(c.PCKCRL), hex.EncodeToString(c.RootCACRL)
	const intelCRL = "https%3A%2F%2Fcertificates.trustedservices.intel.com%2FIntelSGXRootCA.der"
	pck := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificates(t, q.CertData)[0].Raw})
	handler := p.PCCS()
	for _, a := range []struct {
		path, header, value string
		status              int
		body                string // "" is not compared
	}{
		{"/sgx/certification/v4/tcb?fmspc=00606A000000", "TCB-Info-Issuer-Chain", tcbChain, 200, string(c.TCBInfo)},
		{"/sgx/certification/v4/tcb?fmspc=00606a000000&tcbEvaluationDataNumber=3", "", "", 200, string(c.TCBInfo)},
		{"/sgx/certification/v3/tcb?fmspc=00606A000000", "SGX-TCB-Info-Issuer-Chain", tcbChain, 200, ""},
		{"/sgx/certification/v4/qe/identity", "SGX-Enclave-Identity-Issuer-Chain", tcbChain, 200, string(c.QEIdentity)},
		{"/sgx/certification/v3/qe/identity", "SGX-Enclave-Identity-Issuer-Chain", tcbChain, 200, string(c.QEIdentity)},
		{"/sgx/certification/v4/pckcrl?ca=platform", "SGX-PCK-CRL-Issuer-Chain", crlChain, 200, crlHex},
		{"/sgx/certification/v3/pckcrl?ca=platform&encoding=der", "Content-Type", "application/pkix-crl", 200, string(c.PCKCRL)},
		{"/sgx/certification/v4/rootcacrl", "Content-Type", "application/pkix-crl", 200, rootHex},
		{"/sgx/certification/v4/crl?uri=" + intelCRL, "", "", 200, string(c.RootCACRL)},
		{fmt.Sprintf("/sgx/certification/v4/pckcert?qeid=%x&cpusvn=&pcesvn=&pceid=0000", q.UserData[:16]),
			"SGX-FMSPC", "00606A000000", 200, string(pck)},

		{"/sgx/certification/v4/tcb?fmspc=00906ED50000", "", "", 404, ""},
		{"/sgx/certification/v4/tcb?fmspc=00906E", "", "", 400, ""},
		{"/sgx/certification/v4/tcb", "", "", 400, ""},
		{"/sgx/certification/v4/pckcrl?ca=processor", "", "", 404, ""},
		{"/sgx/certification/v4/pckcrl?ca=other", "", "", 400, ""},
		{"/sgx/certification/v4/crl?uri=https%3A%2F%2Fexample.com%2Fcrl.der", "", "", 400, ""},
		{"/sgx/certification/v4/pckcert?qeid=00&pceid=0000", "", "", 461, ""},
		{"/sgx/certification/v4/pckcert", "", "", 400, ""},
		{"/tdx/certification/v4/tcb?fmspc=00606A000000", "", "", 404, ""},
		{"/sgx/certification/v2/tcb?fmspc=00606A000000", "", "", 404, ""},
	} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", a.path, nil))
		if w.Code != a.status || a.body != "" && w.Body.String() != a.body || a.header != "" && w.Header().Get(a.header) != a.value {
			t.Errorf("%s: %d, %s %.40q…, body %.40q…", a.path, w.Code, a.header, w.Header().Get(a.header), w.Body.String())
		}
	}
}

func TestCollateralOfAPIVersion3Verifies(t *testing.T) {
	p := newPlatform(t, softsgx.Options{})
	w := httptest.NewRecorder()
	p.PCCS().ServeHTTP(w, httptest.NewRequest("GET", "/sgx/certification/v3/tcb?fmspc=00606A000000", nil))
	c := p.Collateral()
	c.TCBInfo = w.Body.Bytes()
	v := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: pccs.Stapled(c)})
	if _, err := v.Verify(context.Background(), attest.Evidence{Type: attest.SGX, Raw: quote(t, p, enclave)}, now); err != nil {
		t.Error(err)
	}
}
