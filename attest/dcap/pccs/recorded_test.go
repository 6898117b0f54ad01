package pccs_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/testenv"
)

// answer is a recorded answer of a service.
type answer struct {
	body    string
	headers map[string]string
}

// recorded serves answers by path.
type recorded map[string]answer

func (a recorded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, found := a[r.URL.Path]
	if !found {
		http.NotFound(w, r)
		return
	}
	for name, value := range answer.headers {
		w.Header().Set(name, value)
	}
	_, _ = w.Write([]byte(answer.body))
}

// recordedClient is a client of a server with recorded answers.
func recordedClient(t *testing.T, answers recorded, api string, root *x509.Certificate, at time.Time) *pccs.Client {
	t.Helper()
	server := httptest.NewServer(answers)
	t.Cleanup(server.Close)
	return newClient(t, pccs.Config{URL: server.URL + "/sgx/certification/" + api + "/", AllowHTTP: true,
		Roots: []*x509.Certificate{root}, Now: func() time.Time { return at }})
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compact(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// vector is a quote with the root, the request and the time that belong to it.
type vector struct {
	dir     string
	root    *x509.Certificate
	at      time.Time
	status  string
	quote   []byte
	request dcap.Request
}

// readVector finds a vector beside attest/dcap's tests, or in the larger set.
func readVector(t *testing.T, name string) vector {
	t.Helper()
	v := vector{dir: filepath.Join("../testdata/vectors", name)}
	if _, err := os.Stat(v.dir); err != nil {
		v.dir = testenv.Vectors(t, "dcap", name)
	}
	var expected struct {
		VerifyAt int64  `json:"verify_at_unix"`
		Status   string `json:"qvl_status"`
	}
	if err := json.Unmarshal(read(t, v.dir, "expected.json"), &expected); err != nil {
		t.Fatal(err)
	}
	v.at, v.status = time.Unix(expected.VerifyAt, 0).UTC(), expected.Status
	v.root = certificate(t, read(t, v.dir, "root_ca.pem"))
	v.quote = read(t, v.dir, "quote.dat")
	q, err := sgx.ParseQuote(v.quote)
	if err != nil {
		t.Fatal(err)
	}
	pck := certificate(t, read(t, v.dir, "pck_chain.pem"))
	extension, err := dcap.PCKExtensionOf(pck)
	if err != nil {
		t.Fatal(err)
	}
	v.request = dcap.Request{TEE: q.Type(), FMSPC: extension.FMSPC, CA: dcap.PlatformCA}
	if strings.Contains(pck.Issuer.CommonName, "Processor") {
		v.request.CA = dcap.ProcessorCA
	}
	return v
}

func certificate(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// want verifies the quote with what the source gives and compares the verdict with Intel's.
func (v vector) want(t *testing.T, source dcap.Source) {
	t.Helper()
	verifier := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{v.root}, Source: source})
	claims, err := verifier.Verify(context.Background(), attest.Evidence{Type: v.request.TEE, Raw: v.quote}, v.at)
	if err != nil {
		t.Fatal(err)
	}
	if claims.TCB.StatusName() != v.status {
		t.Errorf("status is %s, Intel's library says %s", claims.TCB.StatusName(), v.status)
	}
}

// TestRecordedServices answers with what Intel's PCCS served in a run of its own: these documents were put into
// it and came out byte for byte, CRLs as hexadecimal text unless DER was asked for.
func TestRecordedServices(t *testing.T) {
	for _, c := range []struct {
		document, vector string       // the vector has the time
		other            dcap.Request // where there is no vector with the document's quote
	}{
		{document: "268c0681_SGX3_00606A000000_eval17_1316ca",
			vector: "automata-dcap-attestation/268c0681_SGX3_00606A000000_eval17_1316ca"},
		{document: "platform_UpToDate", vector: "synthetic-softsgx/platform_UpToDate"},
		{document: "tcb_info_v2", vector: "synthetic-softsgx/tcb_info_v2"},
		{document: "processor_ca", vector: "synthetic-softsgx/platform_UpToDate",
			other: dcap.Request{TEE: attest.SGX, FMSPC: platformRequest.FMSPC, CA: dcap.ProcessorCA}},
		{document: "tdx4_UpToDate", vector: "synthetic-softsgx/platform_UpToDate",
			other: dcap.Request{TEE: attest.TDX, FMSPC: platformRequest.FMSPC, CA: dcap.PlatformCA}},
	} {
		t.Run(c.document, func(t *testing.T) {
			var put struct {
				Collaterals struct {
					TCBInfos []struct {
						V3  json.RawMessage `json:"tcbinfo"`
						SGX json.RawMessage `json:"sgx_tcbinfo"`
						TDX json.RawMessage `json:"tdx_tcbinfo"`
					} `json:"tcbinfos"`
					PCKCRL struct {
						Platform  string `json:"platformCrl"`
						Processor string `json:"processorCrl"`
					} `json:"pckcacrl"`
					QEIdentity   string                     `json:"qeidentity"`
					TDQEIdentity string                     `json:"tdqeidentity"`
					Certificates map[string]json.RawMessage `json:"certificates"`
					RootCACRL    string                     `json:"rootcacrl"`
				} `json:"collaterals"`
			}
			text := read(t, testenv.Vectors(t, "dcap", "pccs", c.document+".platformcollateral.json"))
			if err := json.Unmarshal(text, &put); err != nil {
				t.Fatal(err)
			}
			v := readVector(t, c.vector)
			judged := c.other == dcap.Request{}
			if !judged {
				v.request = c.other
			}
			chain := func(names ...string) string {
				for _, name := range names {
					if raw := put.Collaterals.Certificates[name]; raw != nil {
						var one string
						if json.Unmarshal(raw, &one) == nil {
							return one
						}
						var byCA map[string]string
						if err := json.Unmarshal(raw, &byCA); err != nil {
							t.Fatal(err)
						}
						return byCA[strings.ToUpper(v.request.CA)]
					}
				}
				t.Fatalf("no chain %v", names)
				return ""
			}
			api, header, info := "v4", "TCB-Info-Issuer-Chain", put.Collaterals.TCBInfos[0].SGX
			if info == nil {
				api, header, info = "v3", "SGX-TCB-Info-Issuer-Chain", put.Collaterals.TCBInfos[0].V3
			}
			identity := put.Collaterals.QEIdentity
			if v.request.TEE == attest.TDX {
				info, identity = put.Collaterals.TCBInfos[0].TDX, put.Collaterals.TDQEIdentity
			}
			crl := put.Collaterals.PCKCRL.Platform
			if v.request.CA == dcap.ProcessorCA {
				crl = put.Collaterals.PCKCRL.Processor
			}
			crlDER, err := hex.DecodeString(crl)
			if err != nil {
				t.Fatal(err)
			}
			if !judged { // its root is known from its own chain only
				pemText, err := url.PathUnescape(chain(header))
				if err != nil {
					t.Fatal(err)
				}
				v.root = certificate(t, []byte(pemText[strings.LastIndex(pemText, "-----BEGIN"):]))
			}
			base, sgxBase := "/"+string(v.request.TEE)+"/certification/"+api, "/sgx/certification/"+api
			client := recordedClient(t, recorded{
				base + "/tcb":          {compact(t, info), map[string]string{header: chain(header)}},
				base + "/qe/identity":  {identity, map[string]string{"SGX-Enclave-Identity-Issuer-Chain": chain("SGX-Enclave-Identity-Issuer-Chain")}},
				sgxBase + "/pckcrl":    {string(crlDER), map[string]string{"SGX-PCK-CRL-Issuer-Chain": chain("SGX-PCK-Certificate-Issuer-Chain")}},
				sgxBase + "/rootcacrl": {put.Collaterals.RootCACRL, nil},
			}, api, v.root, v.at)
			got, err := client.Collateral(context.Background(), v.request)
			if err != nil {
				t.Fatal(err)
			}
			if want := compact(t, info); string(got.TCBInfo) != want {
				t.Errorf("TCB info is %.80s…, want %.80s…", got.TCBInfo, want)
			}
			if judged {
				v.want(t, client)
			}
		})
	}
}

func TestCRLsMayComeInAnyEncoding(t *testing.T) {
	for name, encode := range map[string]func(der []byte) []byte{
		"DER":         func(der []byte) []byte { return der },
		"PEM":         func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}) },
		"hexadecimal": func(der []byte) []byte { return []byte(hex.EncodeToString(der)) },
	} {
		for _, vectorName := range []string{
			"dcap-qvl/f8b81014_SGX3_00A067110000_eval17_39a7da",
			"dcap-qvl/f1c85033_TDX3_B0C06F000000_eval17_49ce05",
			"automata-dcap-attestation/268c0681_SGX2_00606A000000_eval17_fc8e3b",
		} {
			t.Run(name+" "+vectorName, func(t *testing.T) {
				v := readVector(t, vectorName)
				chain := func(file string) string { return url.PathEscape(string(read(t, v.dir, file))) }
				api, header := "v4", "TCB-Info-Issuer-Chain"
				if strings.Contains(vectorName, "_SGX2_") {
					api, header = "v3", "SGX-TCB-Info-Issuer-Chain"
				}
				base, sgxBase := "/"+string(v.request.TEE)+"/certification/"+api, "/sgx/certification/"+api
				v.want(t, recordedClient(t, recorded{
					base + "/tcb": {string(read(t, v.dir, "tcb_info.json")), map[string]string{header: chain("tcb_chain.pem")}},
					base + "/qe/identity": {string(read(t, v.dir, "qe_identity.json")),
						map[string]string{"SGX-Enclave-Identity-Issuer-Chain": chain("qe_chain.pem")}},
					sgxBase + "/pckcrl": {string(encode(read(t, v.dir, "pck_crl.der"))),
						map[string]string{"SGX-PCK-CRL-Issuer-Chain": chain("pck_crl_chain.pem")}},
					sgxBase + "/rootcacrl": {string(encode(read(t, v.dir, "root_ca_crl.der"))), nil},
				}, api, v.root, v.at))
			})
		}
	}
}

func TestDirectoryOfAVectorIsASource(t *testing.T) {
	for _, name := range []string{"dcap-qvl/f8b81014_SGX3_00A067110000_eval17_39a7da", "trustee/77bcbdfa_SGX3_00606A000000_eval15_29cc7f"} {
		v := readVector(t, name)
		v.want(t, pccs.Dir(v.dir))
	}
}

func TestMissingCollateralIsRefused(t *testing.T) {
	_, err := pccs.Dir(t.TempDir()).Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeCollateral)
	if !strings.Contains(attest.HintOf(err), "root_ca_crl.der") {
		t.Errorf("the hint is %q", attest.HintOf(err))
	}
	_, err = pccs.Stapled(nil).Collateral(context.Background(), platformRequest)
	wantCode(t, err, attest.CodeCollateral)
}

func TestWrittenDirectoryIsReadBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "collateral")
	want := &dcap.Collateral{TCBInfo: []byte("1"), TCBInfoChain: []byte("2"), QEIdentity: []byte("3"),
		QEIdentityChain: []byte("4"), PCKCRL: []byte("5"), PCKCRLChain: []byte("6"), RootCACRL: []byte("7")}
	for range 2 { // the second time over the first
		if err := pccs.WriteDir(dir, want); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, fetch(t, pccs.Dir(dir)), want)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 7 {
		t.Errorf("the directory has %v, %v; want seven files", files, err)
	}
}
