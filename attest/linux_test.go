package attest_test

import (
	"context"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
)

// says is a verifier that answers with claims of one type.
type says attest.EvidenceType

func (s says) Verify(context.Context, attest.Evidence, time.Time) (attest.Claims, error) {
	return attest.Claims{Type: attest.EvidenceType(s)}, nil
}

func TestVerifiersRefuseWhatNobodyVerifies(t *testing.T) {
	all := attest.Verifiers{attest.SGX: says("sgx"), attest.TPM: says("tpm"), attest.SNP: says("sgx")}
	for kind, code := range map[attest.EvidenceType]attest.Code{
		attest.SGX: "", attest.TPM: "", attest.TDX: attest.CodeEvidence, "": attest.CodeEvidence, "SGX": attest.CodeEvidence,
		attest.SNP: attest.CodeInternal, // claims of another type than the evidence
	} {
		claims, err := all.Verify(t.Context(), attest.Evidence{Type: kind}, time.Time{})
		if code == "" && (err != nil || claims.Type != kind) || code != "" && (err == nil || attest.CodeOf(err) != code) {
			t.Errorf("%q: claims %+v, error %v, want code %q", kind, claims, err, code)
		}
	}
}

// breaks is a verifier that has a fault.
type breaks struct{}

func (breaks) Verify(_ context.Context, e attest.Evidence, _ time.Time) (attest.Claims, error) {
	return attest.Claims{Type: attest.EvidenceType(e.Raw[1<<20])}, nil
}

func TestVerifierThatPanicsRefuses(t *testing.T) {
	claims, err := attest.Verifiers{attest.SNP: breaks{}}.Verify(t.Context(), attest.Evidence{Type: attest.SNP}, time.Time{})
	if attest.CodeOf(err) != attest.CodeEvidence || claims.Type != "" {
		t.Errorf("claims %+v, error %v", claims, err)
	}
}
