package attest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Verifiers hands evidence to the verifier of its type. It refuses evidence of any other type with [CodeEvidence], and
// claims of another type than the evidence's with [CodeInternal]. If a verifier panics, as parsers of foreign formats have
// done on crafted bytes, the evidence is refused with [CodeEvidence], and nothing else is affected.
type Verifiers map[EvidenceType]Verifier

// Verify implements [Verifier].
func (v Verifiers) Verify(ctx context.Context, evidence Evidence, at time.Time) (claims Claims, err error) {
	const step = "verifying evidence"
	defer func() {
		if cause := recover(); cause != nil {
			claims, err = Claims{}, Errorf(CodeEvidence, step, "", "the verifier panicked: %.200v", cause)
		}
	}()
	verifier := v[evidence.Type]
	if verifier == nil {
		var known []string
		for t := range v {
			known = append(known, string(t))
		}
		slices.Sort(known)
		return Claims{}, Errorf(CodeEvidence, step, fmt.Sprintf("This verifier accepts only %s.", strings.Join(known, ", ")),
			"cannot verify evidence of type %.16q", evidence.Type)
	}
	claims, err = verifier.Verify(ctx, evidence, at)
	if err == nil && claims.Type != evidence.Type {
		return Claims{}, Errorf(CodeInternal, step, "", "the verifier of %q answers with claims of %q",
			evidence.Type, claims.Type)
	}
	return claims, err
}
