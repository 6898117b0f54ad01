package tpmconfig

import (
	"fmt"
	"slices"
)

// Settings say how evidence of the TPM is made.
type Settings struct {
	// Device is the TPM, or the unix socket of a software TPM. Default /dev/tpmrm0.
	Device string `json:"device,omitempty"`
	// PCRs are the registers to quote. Default all.
	PCRs []int `json:"pcrs,omitempty"`
	// EphemeralAK makes a new attestation key at every boot; the broker's policy must then name an endorsement key.
	EphemeralAK bool `json:"ephemeral_ak,omitempty"`
	// EndorsementKey sends the endorsement key, to which the broker can then encrypt what it releases.
	EndorsementKey bool `json:"endorsement_key,omitempty"`
	// Certificates is a PEM file with those above the endorsement key's, the root last.
	Certificates string `json:"certificates,omitempty"`
	// EventLog is the file of the firmware's log; without it none is sent.
	EventLog string `json:"event_log,omitempty"`
	// ConfigPCR is a register into which init measures this file before it attests. A register that holds another
	// measurement since power-on is refused, one that holds this one stays. The broker's policy then pins this file, as "sesame tpm enroll --config" computes it. It must be one
	// that nothing else extends and nothing resets: not 0 to 7, 16 or 23.
	ConfigPCR *int `json:"config_pcr,omitempty"`
}

// notForConfig are registers that firmware uses or that anyone may reset (TCG PC Client Platform Firmware Profile).
var notForConfig = []int{0, 1, 2, 3, 4, 5, 6, 7, 16, 23}

// Check reports what is wrong: the key below the block, what is wrong with it, and what to write instead.
func (t *Settings) Check(bad func(key, text, write string)) {
	for i, n := range t.PCRs {
		if n < 0 || n >= PCRCount {
			bad(fmt.Sprintf("pcrs[%d]", i), fmt.Sprintf("there is no register %d", n), "0 to 23")
		}
	}
	if n := t.ConfigPCR; n != nil {
		if *n < 0 || *n >= PCRCount || slices.Contains(notForConfig, *n) {
			bad("config_pcr", fmt.Sprintf("register %d belongs to the firmware, or anyone may reset it", *n), "8 to 15, or 17 to 22")
		} else if len(t.PCRs) > 0 && !slices.Contains(t.PCRs, *n) {
			bad("config_pcr", fmt.Sprintf("register %d is not quoted", *n), "it into tpm.pcrs, too")
		}
	}
	if t.Certificates != "" && !t.EndorsementKey {
		bad("certificates", "are sent with the endorsement key only", `"endorsement_key": true`)
	}
}
