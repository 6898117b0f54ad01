package aecs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/sesame-init/sesame/attest"
)

// errUnimplemented is a server that does not know the method of a generation.
var errUnimplemented = errors.New("the server does not know this method")

// meaning is what one of the server's codes says, what to do about it, and its class.
type meaning struct {
	text, hint string
	code       attest.Code
}

const (
	hintPolicy = "Compare the secret's enclaveMatchAnyRules in the server with this enclave: init logs its " +
		"measurement. The server " +
		"compares text: hexadecimal digits in upper case, numbers in decimal without leading zeros."
	hintReport = "Update the platform and its collateral; a server of generation A takes collateral of a PCCS of " +
		"version 3 only."
	hintBug = "This is a fault of Sesame or of the server; its log has more."
)

// meanings are the upper halves of the server's codes (enclave-configuration-service error.h, jinzhao-attest error.h).
var meanings = map[uint16]meaning{
	0xA005: {"the server is not provisioned yet", "Provision it: aecsadmin provision.", attest.CodeUnreachable},
	0xA302: {"the server does not know the function", hintBug, attest.CodeDenied},
	0xA411: {"the server holds as many secrets as it can", "Delete secrets there.", attest.CodeDenied},
	0xA416: {"the secret is larger than 10240 bytes", "Store a smaller one.", attest.CodeSecret},
	0xA424: {"the secret is read-only", "", attest.CodeDenied},
	0xA441: {"the service's name is empty", "Name aecs.service.", attest.CodeSecret},
	0xA442: {"the secret's name is empty", "Name the secret.", attest.CodeSecret},
	0xA443: {"the server's storage holds a secret of another service at this place", "Look at the server's storage.",
		attest.CodeSecret},
	0xA444: {"the server's storage holds another secret at this place", "Look at the server's storage.",
		attest.CodeSecret},
	0xA446: {"the secret may not be exported, or its policy has no rule",
		"Give the secret enclaveMatchAnyRules in the server.", attest.CodeDenied},
	0xA456: {"the secret is not public", "", attest.CodeDenied},
	0xAA21: {"the secret exists already", "", attest.CodeDenied},
	0xAA28: {"the server has no such secret or service", "Compare the names with serviceadmin list.", attest.CodeSecret},
	0x1119: {"our quote does not bind our key", hintBug, attest.CodeDenied},
	0x111A: {"our MRENCLAVE is not one that the secret's policy names", hintPolicy, attest.CodeDenied},
	0x111B: {"our MRSIGNER is not one that the secret's policy names", hintPolicy, attest.CodeDenied},
	0x111C: {"our user data is not what the secret's policy names", "Set aecs.user_data to it. " + hintPolicy,
		attest.CodeDenied},
	0x111D: {"our product id is not the one that the secret's policy names", hintPolicy, attest.CodeDenied},
	0x111E: {"our security version (ISV SVN) is lower than the secret's policy requires", hintPolicy, attest.CodeDenied},
	0x111F: {"our platform is not the one that the secret's policy names", hintPolicy, attest.CodeDenied},
	0x1120: {"the secret's policy names an SPID, which only EPID has", "Take spid out of the secret's policy.",
		attest.CodeDenied},
	0x1121: {"our debug flag is not what the secret's policy names",
		"Build the enclave without debug, or write debug_disabled \"true\" in " +
			"just these letters: TRUE means false there.", attest.CodeDenied},
	0x1122: {"our platform is not the one that the secret's policy names", hintPolicy, attest.CodeDenied},
	0x1146: {"the server takes no report without collateral", "Configure a PCCS: the server requires a passport.",
		attest.CodeDenied},
	0x114C: {"the secret's policy has no rule", "Give the secret enclaveMatchAnyRules in the server.", attest.CodeDenied},
	0x11A5: {"the server finds our quote not genuine", hintReport, attest.CodeDenied},
	0x11A6: {"the server does not accept the state of our platform", hintReport, attest.CodeDenied},
	0x11A7: {"the server finds a document of our collateral empty", hintReport, attest.CodeDenied},
	0x0E03: {"the server does not know our platform", "Servers of generation A know no TDX.", attest.CodeDenied},
	0x0206: {"the server cannot read our JSON", hintBug + " Servers of generation A refuse collateral of TDX.",
		attest.CodeDenied},
	0x01A4: {"the server takes our key for an SM2 key", hintBug, attest.CodeDenied},
	0x01C6: {"the server takes our key for an SM2 key", hintBug, attest.CodeDenied},
	0x0177: {"the server finds our signature wrong", hintBug, attest.CodeDenied},
	0x0178: {"the server could not encrypt to our key", hintBug, attest.CodeDenied},
	0x0179: {"the server could not decrypt with its key", "Look at the server: its identity may have changed.",
		attest.CodeDenied},
	0x01E2: {"the secret is empty in the server", "Store it anew.", attest.CodeSecret},
	0x01E6: {"the server's storage holds a damaged secret", "Look at the server's storage.", attest.CodeSecret},
	0x0007: {"the server met a C++ exception", "A policy for TDX must leave minIsvSvn empty. The server's log has more.",
		attest.CodeDenied},
}

// explainCode makes a refusal of the text "PREFIX | Error code: 0xXXXXXXXX", nil of any other.
func explainCode(message string) error {
	const step, mark = "waiting for the server's answer", "Error code: 0x"
	i := strings.LastIndex(message, mark)
	if i < 0 {
		return nil
	}
	n, err := strconv.ParseUint(message[i+len(mark):], 16, 32)
	if err != nil {
		return nil
	}
	m, ok := meanings[uint16(n>>16)]
	if !ok {
		return attest.Errorf(attest.CodeDenied, step, "Look the code up in the server's error.h, and at its log.",
			"the server answers with the unknown error 0x%08X", n)
	}
	hint := m.hint
	if hint == "" {
		hint = "The server's log has more."
	}
	text := m.text
	if sgx := uint16(n); sgx != 0 {
		text += fmt.Sprintf(" (SGX status 0x%04X)", sgx)
	}
	return attest.Errorf(m.code, step, hint, "%s: error 0x%08X", text, n)
}

// clean makes a foreign text fit to show.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return fmt.Sprintf("%.200s", s)
}
