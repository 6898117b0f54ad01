package sgx_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/testenv"
)

// quotes are those beside attest/dcap's tests and, if the machine has them, of the larger set.
func quotes(t testing.TB) map[string][]byte {
	t.Helper()
	patterns := []string{"../dcap/testdata/vectors/*/*/quote.dat"}
	if root := os.Getenv("SESAME_VECTORS"); root != "" {
		patterns = append(patterns, filepath.Join(root, "dcap/*/*/quote.dat"), filepath.Join(root, "dcap/parse-only/*.dat"))
	}
	out := map[string][]byte{}
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("no quotes in %s (%v)", pattern, err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out[path] = b
		}
	}
	return out
}

func TestFieldsAreThoseOfTheIndex(t *testing.T) {
	root := testenv.Vectors(t, "dcap")
	index, err := os.ReadFile(filepath.Join(root, "parse-only", "QUOTES.json"))
	if err != nil {
		t.Fatal(err)
	}
	var entries []struct {
		ID         string
		File       string
		Version    uint16
		TEE        string
		CertType   uint16  `json:"cert_data_type"`
		AuthLen    int     `json:"auth_data_len"`
		QESVN      uint16  `json:"qe_isvsvn"`
		Flags      *uint64 `json:"flags"`
		MREnclave  string
		MRSigner   string
		ChainCerts int `json:"chain_certs"`
	}
	if err := json.Unmarshal(index, &entries); err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, e := range entries {
		paths, err := filepath.Glob(filepath.Join(root, "*", e.ID[:8]+"_*", "quote.dat"))
		if err != nil {
			t.Fatal(err)
		}
		if e.File != "" {
			paths = []string{filepath.Join(root, "parse-only", filepath.Base(e.File))}
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			q, err := sgx.ParseQuote(b)
			if err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if q.Version != e.Version || q.CertType != e.CertType || len(q.QEAuthData) != e.AuthLen || q.QEReport.SVN != e.QESVN {
				t.Errorf("%s: version %d, certification data %d, %d bytes of auth data, QE SVN %d, want %+v",
					path, q.Version, q.CertType, len(q.QEAuthData), q.QEReport.SVN, e)
			}
			if e.TEE == "SGX" && (hex.EncodeToString(q.SGX.MREnclave[:]) != e.MREnclave ||
				hex.EncodeToString(q.SGX.MRSigner[:]) != e.MRSigner || q.SGX.Attributes != *e.Flags) {
				t.Errorf("%s: MRENCLAVE %x, MRSIGNER %x, flags %x, want %+v", path, q.SGX.MREnclave, q.SGX.MRSigner, q.SGX.Attributes, e)
			}
			checked++
		}
	}
	if checked < len(entries) {
		t.Errorf("only %d quotes for %d entries", checked, len(entries))
	}
	t.Logf("%d quotes of %d entries", checked, len(entries))
}

func TestLengthsAreBounded(t *testing.T) {
	for path, b := range quotes(t) {
		q, err := sgx.ParseQuote(b)
		if err != nil {
			continue
		}
		for n := range len(b) - len(q.Trailing) {
			if _, err := sgx.ParseQuote(b[:n]); err == nil {
				t.Fatalf("%s: a quote that ends after %d of %d bytes was read", path, n, len(b))
			}
		}
		padded, err := sgx.ParseQuote(append(bytes.Clone(b), 0, 0))
		if err != nil || len(padded.Trailing) != len(q.Trailing)+2 {
			t.Errorf("%s: padding is not in Trailing (%v)", path, err)
		}
	}
	if _, err := sgx.ParseQuote(make([]byte, sgx.MaxQuoteSize+1)); err == nil {
		t.Error("a quote above the limit was read")
	}
}

func TestReportBodyRoundTrip(t *testing.T) {
	body := sgx.ReportBody{
		SGXClaims: attest.SGXClaims{
			MREnclave: [32]byte{1}, MRSigner: [32]byte{2}, ProductID: 0x0304, SVN: 0x0506, CPUSVN: [16]byte{7},
			MiscSelect: 0x08090a0b, Attributes: 0x0c0d, XFRM: 0x0e0f, ConfigID: [64]byte{0x10}, ConfigSVN: 0x1112,
			FamilyID: [16]byte{0x13}, ExtProdID: [16]byte{0x14},
		},
		ReportData: attest.ReportData{0x15},
	}
	raw, err := body.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := sgx.ParseReportBody(raw); err != nil || got != body {
		t.Errorf("read back %+v (%v), want %+v", got, err, body)
	}
}

// FuzzParseQuote checks that the parts of a quote that is read lie in it in order, and cover it.
func FuzzParseQuote(f *testing.F) {
	for _, b := range quotes(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := sgx.ParseQuote(b)
		if err != nil {
			return
		}
		if (q.SGX == nil) == (q.TDX == nil) || (q.Type() == attest.TDX) != (q.TEE == sgx.TEETDX) {
			t.Errorf("TEE %#x: SGX %v, TDX %v", q.TEE, q.SGX != nil, q.TDX != nil)
		}
		whole := append(bytes.Clone(q.Signed), b[len(q.Signed):len(q.Signed)+4]...)
		whole = append(append(append(whole, q.Signature...), q.Certification...), q.Trailing...)
		if !bytes.Equal(whole, b) {
			t.Error("the parts do not make up the quote")
		}
		if !bytes.HasSuffix(q.Certification, q.CertData) || !bytes.HasPrefix(q.Certification, q.AttestationKey[:]) ||
			len(q.QEReportRaw) != sgx.ReportBodySize || len(q.Signature) != 64 || len(q.QEReportSignature) != 64 {
			t.Error("parts have wrong places or sizes")
		}
	})
}
