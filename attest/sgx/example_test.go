package sgx_test

import (
	"fmt"
	"os"

	"github.com/sesame-init/sesame/attest/sgx"
)

// What does a quote claim? Parsing verifies nothing.
func ExampleParseQuote() {
	raw, err := os.ReadFile("../dcap/testdata/vectors/automata-dcap-attestation/268c0681_SGX2_00606A000000_eval17_fc8e3b/quote.dat")
	if err != nil {
		fmt.Println(err)
		return
	}
	quote, err := sgx.ParseQuote(raw)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("version", quote.Version, "type", quote.Type())
	fmt.Printf("MRENCLAVE %x…\n", quote.SGX.MREnclave[:4])
	// Output:
	// version 3 type sgx
	// MRENCLAVE 3e7830a3…
}
