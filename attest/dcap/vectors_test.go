package dcap_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/testenv"
)

// vector is a quote with its collateral and the verdict of Intel's quote verification library.
type vector struct {
	name       string
	quote      []byte
	collateral dcap.Collateral
	root       *x509.Certificate
	pckChain   []byte
	at         time.Time
	typ        attest.EvidenceType

	QVL        map[string]string `json:"qvl"`
	Status     string            `json:"qvl_status"`
	Advisories *string           `json:"qvl_advisories"` // not recorded for derived vectors
	TCBDate    string            `json:"qvl_tcb_date"`
	Evaluation string            `json:"qvl_tcb_eval"`
	VerifyAt   int64             `json:"verify_at_unix"`
	TEE        string            `json:"tee"`
	Expiry     string            `json:"qvl_earliest_expiration"`
}

// accepted reports whether Intel's library finds the quote genuine.
func (v *vector) accepted() bool {
	return v.QVL["pck"] == "STATUS_OK" && v.QVL["tcb"] == "STATUS_OK" && v.QVL["qe"] == "STATUS_OK" && v.Status != ""
}

func readVector(t testing.TB, dir string) *vector {
	t.Helper()
	v := &vector{name: filepath.Join(filepath.Base(filepath.Dir(dir)), filepath.Base(dir))}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return b
	}
	if err := json.Unmarshal(read("expected.json"), v); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	v.quote = read("quote.dat")
	v.collateral = dcap.Collateral{
		TCBInfo: read("tcb_info.json"), TCBInfoChain: read("tcb_chain.pem"),
		QEIdentity: read("qe_identity.json"), QEIdentityChain: read("qe_chain.pem"),
		PCKCRL: read("pck_crl.der"), PCKCRLChain: read("pck_crl_chain.pem"), RootCACRL: read("root_ca_crl.der"),
	}
	v.pckChain = read("pck_chain.pem")
	block, _ := pem.Decode(read("root_ca.pem"))
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	v.root = root
	v.at = time.Unix(v.VerifyAt, 0)
	v.typ = attest.EvidenceType(strings.ToLower(v.TEE))
	return v
}

// readVectors reads the vectors in the folders below dir that match pattern.
func readVectors(t testing.TB, dir, pattern string) []*vector {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(dir, pattern, "expected.json"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no vectors in %s %s (%v)", dir, pattern, err)
	}
	var out []*vector
	for _, d := range dirs {
		out = append(out, readVector(t, filepath.Dir(d)))
	}
	return out
}

// Collateral implements dcap.Source.
func (v *vector) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	return &v.collateral, nil
}

func (v *vector) verifier() *dcap.Verifier {
	return dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{v.root}, Source: v})
}

func (v *vector) verify(d *dcap.Verifier) (attest.Claims, error) {
	return d.Verify(context.Background(), attest.Evidence{Type: v.typ, Raw: v.quote}, v.at)
}

// difference names the first difference between our verdict and that of Intel's library, "" if there is none.
// Our earliest expiry may be earlier: it counts the CRLs, too, which Intel's value in the vectors does not.
func (v *vector) difference(c attest.Claims, err error) string {
	if err != nil || !v.accepted() {
		if (err == nil) == v.accepted() {
			return ""
		}
		return fmt.Sprintf("QVL says %q %v, we %q (%v)", v.Status, v.QVL, c.TCB.StatusName(), err)
	}
	for _, f := range [][3]string{
		{"status", c.TCB.StatusName(), v.Status},
		{"TCB date", strconv.FormatInt(c.TCB.Date.Unix(), 10), v.TCBDate},
		{"evaluation number", strconv.FormatUint(uint64(c.TCB.EvaluationNumber), 10), v.Evaluation},
	} {
		if f[1] != f[2] && (f[2] != "" || f[0] == "status") {
			return fmt.Sprintf("%s is %s, QVL has %s", f[0], f[1], f[2])
		}
	}
	if got := strings.Join(c.TCB.Advisories, ","); v.Advisories != nil && got != *v.Advisories {
		return fmt.Sprintf("advisories are %s, QVL has %s", got, *v.Advisories)
	}
	if expiry, err := strconv.ParseInt(v.Expiry, 10, 64); err == nil && c.TCB.EarliestExpiry.Unix() > expiry {
		return fmt.Sprintf("earliest expiry is %s, QVL has %s", c.TCB.EarliestExpiry, v.Expiry)
	}
	return ""
}

// deliberate are the vectors on which our verdict is not that of Intel's library, on purpose. The table in
// docs/verification.md gives the reasons.
var deliberate = map[string]struct {
	step  dcap.Step          // that refuses; "" where we accept and Intel's library does not
	agree func(*dcap.Config) // makes us agree; nil where nothing does
}{
	"derived-negative/cert_data_type_1":                          {dcap.StepCertificationData, nil},
	"derived-negative/cert_data_type_4":                          {dcap.StepCertificationData, nil},
	"intel-qvl-sample/sgx":                                       {dcap.StepCertificationData, nil},
	"derived-negative/cert_len_zero":                             {dcap.StepQuote, nil},
	"derived-negative/trailing_byte":                             {dcap.StepQuote, func(c *dcap.Config) { c.AllowTrailing = true }},
	"derived-negative/pck_chain_missing_root":                    {"", nil},
	"derived-negative/pck_chain_swapped_leaf":                    {"", nil},
	"derived-negative/before_issue":                              {"", nil},
	"synthetic-softsgx/not_yet_valid_crl":                        {"", nil},
	"scroll-sgx-prover/a086bc70_SGX2_00606A000000_eval15_a32989": {dcap.StepValidity, nil},
	"scroll-sgx-prover/a086bc70_SGX3_00606A000000_eval15_29cc7f": {dcap.StepValidity, nil},
	"scroll-sgx-prover/c47e4bfd_SGX2_00606A000000_eval15_a32989": {dcap.StepValidity, nil},
	"scroll-sgx-prover/c47e4bfd_SGX3_00606A000000_eval15_29cc7f": {dcap.StepValidity, nil},
}

// corpora are the vectors beside this file and, if the machine has them, the larger set.
func corpora(t *testing.T, test func(t *testing.T, vectors []*vector)) {
	t.Run("shipped", func(t *testing.T) { test(t, readVectors(t, "testdata", "vectors/*/*")) })
	t.Run("all", func(t *testing.T) { test(t, readVectors(t, testenv.Vectors(t, "dcap"), "*/*")) })
}

func TestVerdictsAreThoseOfIntelsLibrary(t *testing.T) {
	corpora(t, func(t *testing.T, vectors []*vector) {
		agree, expected := 0, 0
		for _, v := range vectors {
			if _, ok := deliberate[v.name]; ok {
				expected++
				continue
			}
			if diff := v.difference(v.verify(v.verifier())); diff != "" {
				t.Errorf("%s: %s", v.name, diff)
				continue
			}
			agree++
		}
		t.Logf("%d of %d agree; %d more differ on purpose", agree, len(vectors)-expected, expected)
	})
}

func TestDeliberateDifferencesAreRefusedAtTheirStep(t *testing.T) {
	root := testenv.Vectors(t, "dcap")
	for name, want := range deliberate {
		v := readVector(t, filepath.Join(root, name))
		c, err := v.verify(v.verifier())
		if got := dcap.StepOf(err); got != want.step {
			t.Errorf("%s: step %q (%v), want %q", name, got, err, want.step)
		}
		status := v.Status
		if status == "" { // Intel's library gave up before it had one
			status = "SWHardeningNeeded"
		}
		if want.step == "" && c.TCB.StatusName() != status {
			t.Errorf("%s: status %s, want %s", name, c.TCB.StatusName(), status)
		}
		if want.step == dcap.StepCertificationData && v.accepted() {
			want.agree = func(c *dcap.Config) { c.PCKChain = leafFirst(t, v.pckChain) }
		}
		if want.agree != nil {
			config := dcap.Config{Roots: []*x509.Certificate{v.root}, Source: v}
			want.agree(&config)
			if diff := v.difference(v.verify(dcap.NewVerifier(config))); diff != "" {
				t.Errorf("%s, when configured to agree: %s", name, diff)
			}
		}
	}
}

// leafFirst brings a PEM chain into the order that a quote has.
func leafFirst(t *testing.T, chain []byte) []byte {
	t.Helper()
	blocks := map[string][]byte{}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Fields(cert.Subject.CommonName)
		blocks[words[len(words)-2]] = pem.EncodeToMemory(block)
	}
	return slices.Concat(blocks["PCK"], blocks["Platform"], blocks["Processor"], blocks["Root"])
}

// steps translates the errors of Intel's library.
var steps = map[string][]dcap.Step{
	"STATUS_UNSUPPORTED_QUOTE_FORMAT":               {dcap.StepQuote},
	"STATUS_UNSUPPORTED_CERT_FORMAT":                {dcap.StepTCBInfoChain},
	"STATUS_SGX_PCK_CERT_CHAIN_UNTRUSTED":           {dcap.StepPCKChain},
	"STATUS_SGX_TCB_SIGNING_CERT_MISSING":           {dcap.StepTCBInfoChain},
	"STATUS_SGX_CRL_UNKNOWN_ISSUER":                 {dcap.StepRootCRL, dcap.StepPCKCRL},
	"STATUS_SGX_CRL_INVALID_SIGNATURE":              {dcap.StepRootCRL, dcap.StepPCKCRL},
	"STATUS_SGX_CRL_EXPIRED":                        {dcap.StepValidity},
	"STATUS_SGX_PCK_CERT_CHAIN_EXPIRED":             {dcap.StepValidity},
	"STATUS_SGX_PCK_REVOKED":                        {dcap.StepRevocation},
	"STATUS_TCB_INFO_INVALID_SIGNATURE":             {dcap.StepTCBInfo},
	"STATUS_SGX_ENCLAVE_IDENTITY_INVALID_SIGNATURE": {dcap.StepQEIdentity},
	"STATUS_TCB_INFO_MISMATCH":                      {dcap.StepMatchTCBInfo},
	"STATUS_TDX_MODULE_MISMATCH":                    {dcap.StepMatchTDXModule},
	"STATUS_INVALID_QE_REPORT_SIGNATURE":            {dcap.StepQEReportSignature},
	"STATUS_INVALID_QE_REPORT_DATA":                 {dcap.StepAttestationKey},
	"STATUS_QE_IDENTITY_MISMATCH":                   {dcap.StepMatchQEIdentity},
	"STATUS_INVALID_QUOTE_SIGNATURE":                {dcap.StepQuoteSignature},
	"STATUS_TCB_NOT_SUPPORTED":                      {dcap.StepTCBLevel},
}

func TestBadQuotesAreRefusedAtTheStepThatTheVectorNames(t *testing.T) {
	checked := 0
	for _, v := range readVectors(t, testenv.Vectors(t, "dcap"), "*/*") {
		if _, ok := deliberate[v.name]; ok || v.accepted() {
			continue
		}
		_, err := v.verify(v.verifier())
		want := ""
		for _, call := range []string{"pck", "tcb", "qe", "quote"} {
			if want == "" && v.QVL[call] != "STATUS_OK" {
				want = v.QVL[call]
			}
		}
		allowed := steps[want]
		if v.name == "intel-qvl-sample/tdx" {
			allowed = []dcap.Step{dcap.StepCertificationData} // its chain is not PEM; QVL was given another
		}
		if !slices.Contains(allowed, dcap.StepOf(err)) {
			t.Errorf("%s: refused at %q (%v), want %v for %s", v.name, dcap.StepOf(err), err, allowed, want)
		}
		if code := attest.CodeOf(err); code != attest.CodeEvidence && code != attest.CodeCollateral {
			t.Errorf("%s: code %s", v.name, code)
		}
		checked++
	}
	t.Logf("%d bad quotes refused at their step", checked)
}
