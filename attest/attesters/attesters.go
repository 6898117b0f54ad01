// Package attesters is the list of attesters outside Occlum: each lives in a folder of its own, and is here by one line. What a
// policy can want of its evidence is one line of the type Policy in attest/policy.
//
// init inside an enclave does not import this package: it has no use for TPMs and confidential VMs, and stays small. Its only
// attester is the one in attest/sgx.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. Attesters may be
// added to the list.
package attesters

import (
	"slices"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/cvm"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/attest/trust"
)

// All are the attesters.
func All() []trust.Kind {
	return []trust.Kind{
		cvm.TDX(),
		cvm.SNP(),
		tpm.Kind(),
	}
}

// Of is the attester that makes evidence of a type. It fails with [attest.CodeConfig] if there is none.
func Of(t attest.EvidenceType) (trust.Kind, error) {
	all := All()
	i := slices.IndexFunc(all, func(k trust.Kind) bool { return k.Type == t })
	if i < 0 {
		return trust.Kind{}, attest.Errorf(attest.CodeConfig, "choosing the attester", "", "there is no attester %q", t)
	}
	return all[i], nil
}
