// Package tdx makes evidence of a trust domain (Intel TDX): a DCAP quote of the TD, through configfs-tsm.
// Package attest/dcap verifies it, with the same collateral services as quotes of enclaves.
//
// What it proves is the TD's first image (MRTD) and what firmware and kernel have extended into its runtime registers
// (RTMRs) since; the TD's memory is encrypted against the host. The quote is made outside of the TD by the host's quoting
// service, which can withhold it but not forge it.
package tdx

import (
	"context"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/attest/tsm"
)

const provider = "tdx_guest"

// Attester implements [attest.Attester].
type Attester struct{ client tsm.Client }

// Open finds the machine's interface. The error's code is [attest.CodeAttester].
func Open() (*Attester, error) {
	client, err := tsm.Open()
	if err != nil {
		return nil, err
	}
	return New(client), nil
}

// New is an attester that asks client.
func New(client tsm.Client) *Attester { return &Attester{client} }

// Close implements [io.Closer].
func (*Attester) Close() error { return nil }

// Type implements [attest.Attester].
func (*Attester) Type() attest.EvidenceType { return attest.TDX }

// Evidence implements [attest.Attester].
func (a *Attester) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	const step = "making evidence of the trust domain"
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	raw, _, err := tsm.Report(a.client, provider, data, false)
	if err != nil {
		return attest.Evidence{}, err
	}
	quote, err := sgx.ParseQuote(raw)
	if err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	if quote.Type() != attest.TDX || quote.ReportData() != data {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "",
			"the quote is of type %q, or not over the data that was asked for", quote.Type())
	}
	return attest.Evidence{Type: attest.TDX, Raw: raw}, nil
}
