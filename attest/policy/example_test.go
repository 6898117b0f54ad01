package policy_test

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

// Do I like what genuine evidence claims? The answer has a reason for every rule.
func ExamplePolicy_Appraise() {
	var wanted policy.Policy
	text := `{"sgx": [{"mr_signer": "` + fmt.Sprintf("%064x", 0xb0) + `", "product_id": 3, "min_svn": 2}]}`
	if err := json.Unmarshal([]byte(text), &wanted); err != nil {
		fmt.Println(err)
		return
	}
	if err := wanted.Validate(); err != nil {
		fmt.Println(err)
		return
	}
	claims := attest.Claims{ // as a verifier returns them
		Type: attest.SGX, TCB: attest.TCB{Status: tcbstatus.UpToDate},
		SGX: &attest.SGXClaims{MRSigner: [32]byte{31: 0xb0}, ProductID: 3, SVN: 1},
	}
	answer := wanted.Appraise(claims, time.Now())
	fmt.Println("accepted:", answer.Accepted)
	for _, reason := range answer.Reasons {
		if !reason.Passed {
			fmt.Println(reason.Rule+":", reason.Text)
		}
	}
	// Output:
	// accepted: false
	// sgx[0].min_svn: 1, less than 2
}

// A policy that pins too little does not load.
func ExamplePolicy_Validate() {
	signer := make(policy.Hex, 32)
	weak := policy.Policy{SGX: []policy.SGX{{MRSigner: signer}}}
	err := weak.Validate()
	fmt.Println(attest.CodeOf(err))
	for _, fault := range weak.Faults() {
		fmt.Println(fault)
	}
	// Output:
	// config
	// sgx[0].product_id is missing: mr_signer alone accepts everything that this signer ever signs
	// sgx[0].min_svn is missing: without it old versions stay accepted
}
