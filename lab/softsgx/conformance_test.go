package softsgx_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/attesttest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

func TestConformance(t *testing.T) {
	p, err := softsgx.New(softsgx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var enclave sgx.ReportBody
	enclave.MREnclave[0] = 1
	attesttest.Run(t, attesttest.Case{
		Type: attest.SGX, Attester: p.Attester(enclave), At: time.Now().Add(time.Minute),
		Verifier: dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{p.RootCA()}, Source: pccs.Stapled(p.Collateral())}),
	})
}
