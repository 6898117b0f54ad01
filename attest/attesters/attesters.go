// Package attesters is the list of attesters beside those that make quotes: each lives in a folder of its own, and is here by
// one line. init inside an enclave, which has no use for them, does not import it.
package attesters

import (
	"github.com/sesame-init/sesame/attest/cvm"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/attest/trust"
)

// All says how the evidence of each is verified.
func All() []trust.Kind {
	return []trust.Kind{
		cvm.SNP(),
		tpm.Kind(),
	}
}
