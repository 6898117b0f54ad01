package attest_test

import (
	"errors"
	"fmt"

	"github.com/sesame-init/sesame/attest"
)

// A secret does not print, in whatever format.
func ExampleSecret() {
	key := attest.NewSecret([]byte("very secret key!"))
	defer key.Wipe()
	fmt.Println(key)
	fmt.Printf("%#v %x\n", key, key)
	fmt.Println(len(key.Expose()), "bytes")
	// Output:
	// [secret]
	// [secret] [secret]
	// 16 bytes
}

// A refusal says which step failed and why, and has a code for programs and a hint for people.
func ExampleError() {
	err := attest.Errorf(attest.CodeCollateral, "fetching collateral", "See whether the PCCS is up.",
		"%w", errors.New("connection refused"))
	fmt.Println(err)
	fmt.Println("code:", attest.CodeOf(err))
	fmt.Println("hint:", attest.HintOf(err))
	// Output:
	// fetching collateral: connection refused
	// code: collateral
	// hint: See whether the PCCS is up.
}
