package attesttest

import (
	"context"

	"github.com/sesame-init/sesame/attest"
)

// Overtaken is an attester whose caller's context ends while it makes evidence.
type Overtaken struct {
	attest.Attester
	End func() // ends the context
}

// Evidence implements [attest.Attester].
func (o Overtaken) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	o.End()
	return o.Attester.Evidence(ctx, data)
}
