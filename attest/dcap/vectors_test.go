package dcap_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
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

	QVL          map[string]string `json:"qvl"`
	Status       string            `json:"qvl_status"`
	Advisories   string            `json:"qvl_advisories"`
	TCBDate      string            `json:"qvl_tcb_date"`
	Evaluation   string            `json:"qvl_tcb_eval"`
	VerifyAt     int64             `json:"verify_at_unix"`
	TEE          string            `json:"tee"`
	Expiry       string            `json:"qvl_earliest_expiration"`
	SelfVerifier string            `json:"self_contained_verifier"`
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

// compare names the first difference between our verdict and that of Intel's library.
func (v *vector) compare(c attest.Claims, err error) string {
	if err != nil || !v.accepted() {
		if (err == nil) == v.accepted() {
			return ""
		}
		return "QVL: " + v.Status + " " + strings.Join([]string{v.QVL["pck"], v.QVL["tcb"], v.QVL["qe"], v.QVL["quote"]}, " ") +
			", we: " + c.TCB.StatusName() + " " + errText(err)
	}
	for _, f := range [][3]string{
		{"status", c.TCB.StatusName(), v.Status},
		{"advisories", strings.Join(c.TCB.Advisories, ","), v.Advisories},
		{"TCB date", strconv.FormatInt(c.TCB.Date.Unix(), 10), v.TCBDate},
		{"evaluation number", strconv.FormatUint(uint64(c.TCB.EvaluationNumber), 10), v.Evaluation},
		{"earliest expiry", strconv.FormatInt(c.TCB.EarliestExpiry.Unix(), 10), v.Expiry},
	} {
		if f[1] != f[2] && f[2] != "" {
			return f[0] + " is " + f[1] + ", QVL has " + f[2]
		}
	}
	return ""
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestVerdictsAreThoseOfIntelsLibrary(t *testing.T) {
	vectors := readVectors(t, testenv.Vectors(t, "dcap"), "*/*")
	agree := 0
	for _, v := range vectors {
		d := v.verifier()
		c, err := v.verify(d)
		diff := v.compare(c, err)
		if diff == "" {
			agree++
			continue
		}
		t.Errorf("%s: %s", v.name, diff)
	}
	t.Logf("%d of %d vectors agree", agree, len(vectors))
}
