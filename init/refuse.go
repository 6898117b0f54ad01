package main

import (
	"fmt"
	"io"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
)

// exitCodes are part of the manual: scripts and operators rely on them.
var exitCodes = map[attest.Code]int{
	attest.CodeConfig:      10,
	attest.CodeUsage:       10,
	attest.CodeAttester:    11,
	attest.CodeUnreachable: 12,
	attest.CodeDenied:      13,
	attest.CodeEvidence:    14,
	attest.CodePolicy:      15,
	attest.CodeCollateral:  16,
	attest.CodeMissing:     16,
	attest.CodeSecret:      17,
	attest.CodeMount:       18,
	attest.CodeLaunch:      19,
	attest.CodeInternal:    fault.Status,
	attest.CodeStopped:     21,
}

// refuse prints the refusal on two lines and returns the exit status. For nil it prints nothing and returns 0.
func refuse(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code := attest.CodeOf(err)
	fmt.Fprintf(w, "init: refused [%s] %v\n", code, err)
	hint := attest.HintOf(err)
	if hint == "" {
		hint = "Nothing more is known; the lines above show how far the boot came."
	}
	fmt.Fprintf(w, "init: to do: %s\n", hint)
	return exitCodes[code]
}
