package cvm_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/cvm"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/tsmtest"
)

// vectors are genuine quotes of trust domains with their collateral.
const vectors = "../dcap/testdata/vectors"

func TestTDXConformance(t *testing.T) {
	for _, name := range []string{
		"dcap-qvl/f1c85033_TDX3_B0C06F000000_eval17_49ce05", "openenclave/d21a11db_TDX3_90C06F000000_eval18_7f01ec",
	} {
		dir := filepath.Join(vectors, name)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			read := func(name string) []byte {
				b, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			var expected struct {
				VerifyAt int64 `json:"verify_at_unix"`
			}
			if err := json.Unmarshal(read("expected.json"), &expected); err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(read("root_ca.pem"))
			root, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			raw := read("quote.dat")
			quote, err := sgx.ParseQuote(raw)
			if err != nil {
				t.Fatal(err)
			}
			data := quote.ReportData()
			attesttest.Run(t, attesttest.Case{
				Type: attest.TDX, At: time.Unix(expected.VerifyAt, 0), Recorded: &data, Stride: 23,
				Attester: cvm.NewTDX(tsmtest.Client(firmware(raw, "tdx_guest"))),
				Verifier: dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{root}, Source: pccs.Stapled(&dcap.Collateral{
					TCBInfo: read("tcb_info.json"), TCBInfoChain: read("tcb_chain.pem"), QEIdentity: read("qe_identity.json"),
					QEIdentityChain: read("qe_chain.pem"), PCKCRL: read("pck_crl.der"), PCKCRLChain: read("pck_crl_chain.pem"),
					RootCACRL: read("root_ca_crl.der"),
				})}),
			})
			// A quote over something else is not passed on as evidence of what was asked for.
			_, err = cvm.NewTDX(tsmtest.Client(firmware(raw, "tdx_guest"))).Evidence(t.Context(), attest.ReportData{42})
			if attest.CodeOf(err) != attest.CodeAttester {
				t.Errorf("another report data: %v", err)
			}
			_, err = cvm.NewTDX(tsmtest.Client(firmware(raw, "sev_guest"))).Evidence(t.Context(), data)
			if attest.CodeOf(err) != attest.CodeAttester || attest.HintOf(err) == "" {
				t.Errorf("another provider: %v", err)
			}
		})
	}
}

func firmware(quote []byte, provider string) tsmtest.Firmware {
	return tsmtest.Firmware{Provider: provider, Report: func(attest.ReportData) ([]byte, []byte, error) { return quote, nil, nil }}
}

func TestSilentFirmwareIsAnAttesterError(t *testing.T) {
	dead := tsmtest.Firmware{Provider: "tdx_guest", Report: func(attest.ReportData) ([]byte, []byte, error) {
		return nil, nil, errors.New("quoting service is down")
	}}
	if _, err := cvm.NewTDX(tsmtest.Client(dead)).Evidence(t.Context(), attest.ReportData{}); attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("error is %v", err)
	}
	if _, err := cvm.OpenTDX(); err != nil && (attest.CodeOf(err) != attest.CodeAttester || attest.HintOf(err) == "") {
		t.Errorf("without a trust domain: %v", err)
	}
}
