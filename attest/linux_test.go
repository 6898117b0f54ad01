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
