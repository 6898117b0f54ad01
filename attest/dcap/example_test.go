package dcap_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
)

// A folder with a quote and the collateral of its platform, as "sesame quote fetch" or a PCCS gives it.
const recorded = "testdata/vectors/automata-dcap-attestation/268c0681_SGX2_00606A000000_eval17_fc8e3b"

// Is this quote genuine, and in which state is the platform that made it?
func ExampleVerifier() {
	quote, err := os.ReadFile(recorded + "/quote.dat")
	if err != nil {
		fmt.Println(err)
		return
	}
	verifier := dcap.NewVerifier(dcap.Config{Source: pccs.Dir(recorded)})
	at := time.Date(2025, 6, 19, 9, 22, 21, 0, time.UTC) // an application asks its clock
	claims, err := verifier.Verify(context.Background(), attest.Evidence{Type: attest.SGX, Raw: quote}, at)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(claims.TCB.StatusName())
	fmt.Println("evaluation", claims.TCB.EvaluationNumber, "expires", claims.TCB.EarliestExpiry.UTC().Format(time.DateOnly))

	_, err = verifier.Verify(context.Background(), attest.Evidence{Type: attest.SGX, Raw: quote}, at.AddDate(0, 1, 0))
	fmt.Println("a month later:", attest.CodeOf(err))
	// Output:
	// SWHardeningNeeded
	// evaluation 17 expires 2025-07-04
	// a month later: collateral
}

// Which platform does a quote come from, before anything is verified? Collateral services want to know.
func ExampleRequestFor() {
	quote, err := os.ReadFile(recorded + "/quote.dat")
	if err != nil {
		fmt.Println(err)
		return
	}
	request, err := dcap.RequestFor(quote)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("FMSPC %X, CA %s\n", request.FMSPC, request.CA)
	// Output: FMSPC 00606A000000, CA platform
}
