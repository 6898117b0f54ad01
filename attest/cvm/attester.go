// Package cvm makes evidence of confidential virtual machines, Intel TDX and AMD SEV-SNP, and verifies that of SEV-SNP.
//
// Evidence comes from Linux' own interface, configfs-tsm (Documentation/ABI/testing/configfs-tsm, Linux 6.7), by
// github.com/google/go-configfs-tsm. For TDX it is a DCAP quote, which package attest/dcap verifies with the same collateral
// services as quotes of enclaves. For SEV-SNP it is the attestation report of 1184 bytes and then the host's table of
// certificates (AMD 56421, SEV-ES GHCB, 4.1.8.1), which may be empty; [SNPVerifier] verifies it by
// github.com/google/go-sev-guest.
//
// What evidence proves: for TDX the trust domain's first image (MRTD) and what firmware and kernel have extended into its
// runtime registers (RTMRs) since; for SEV-SNP the guest's launch measurement, its policy and the firmware's versions. The
// machine's memory is encrypted against the host. SEV-SNP does not prove what was loaded after the launch: that takes a
// measured boot below the measurement, or the guest's TPM beside it. A TDX quote is made outside of the trust domain by the
// host's quoting service, which can withhold it but not forge it.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The encoding of
// evidence stays readable: what an attester of one release makes, the verifiers of all later ones of the same major
// version take.
package cvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

// Bounds in bytes.
const (
	maxReport = 48 << 10
	maxTable  = 12 << 10
)

// Client is configfs.
type Client = configfsi.Client

// Attester implements [attest.Attester].
type Attester struct {
	client Client
	kind   kind
}

// kind is a technology as configfs-tsm has it.
type kind struct {
	evidence attest.EvidenceType
	provider string // its name in configfs-tsm
	table    bool   // the host adds certificates
	// check returns the part of a report that is evidence, if the report is over the data.
	check func(raw []byte, data attest.ReportData) ([]byte, error)
}

var (
	tdx = kind{evidence: attest.TDX, provider: "tdx_guest", check: checkQuote}
	snp = kind{evidence: attest.SNP, provider: "sev_guest", table: true, check: checkReport}
)

// OpenTDX finds the interface of a trust domain. The error's code is [attest.CodeAttester].
func OpenTDX() (*Attester, error) { return open(tdx) }

// OpenSNP finds the interface of an SEV-SNP guest. The error's code is [attest.CodeAttester].
func OpenSNP() (*Attester, error) { return open(snp) }

func open(k kind) (*Attester, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, attest.Errorf(attest.CodeAttester, "opening configfs-tsm",
			"It needs a confidential VM with Linux 6.7 or newer, and: mount -t configfs none /sys/kernel/config.", "%w", err)
	}
	return &Attester{client, k}, nil
}

// NewTDX makes an attester of a trust domain that asks client.
func NewTDX(client Client) *Attester { return &Attester{client, tdx} }

// NewSNP makes an attester of an SEV-SNP guest that asks client.
func NewSNP(client Client) *Attester { return &Attester{client, snp} }

// Close implements [io.Closer].
func (*Attester) Close() error { return nil }

// Type implements [attest.Attester].
func (a *Attester) Type() attest.EvidenceType { return a.kind.evidence }

// Evidence implements [attest.Attester].
func (a *Attester) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	const step = "making evidence of the confidential VM"
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	raw, table, err := a.report(data)
	if err != nil {
		return attest.Evidence{}, err
	}
	raw, err = a.kind.check(raw, data)
	if err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	return attest.Evidence{Type: a.kind.evidence, Raw: append(raw[:len(raw):len(raw)], table...)}, nil
}

// report asks configfs-tsm for a report over data, and for the host's table of certificates.
func (a *Attester) report(data attest.ReportData) (raw, table []byte, err error) {
	const step = "asking configfs-tsm for a report"
	response, err := report.Get(a.client, &report.Request{InBlob: data[:], GetAuxBlob: a.kind.table})
	if err != nil {
		hint := ""
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			hint = "Mount configfs, load the module " + a.kind.provider + ", and run as root."
		}
		return nil, nil, attest.Errorf(attest.CodeAttester, step, hint, "%w", err)
	}
	if strings.TrimSpace(response.Provider) != a.kind.provider { // the kernel ends the line
		return nil, nil, attest.Errorf(attest.CodeAttester, step, "Name the attester that this machine has in the config.",
			"the machine's provider is %.32q, not %s", response.Provider, a.kind.provider)
	}
	if len(response.OutBlob) == 0 || len(response.OutBlob) > maxReport || len(response.AuxBlob) > maxTable {
		return nil, nil, attest.Errorf(attest.CodeAttester, step, "",
			"a report of %d bytes with %d of certificates", len(response.OutBlob), len(response.AuxBlob))
	}
	return response.OutBlob, response.AuxBlob, nil
}

func checkQuote(raw []byte, data attest.ReportData) ([]byte, error) {
	quote, err := sgx.ParseQuote(raw)
	if err != nil {
		return nil, err
	}
	if quote.Type() != attest.TDX || quote.ReportData() != data {
		return nil, fmt.Errorf("the quote is of type %q, or not over the data that was asked for", quote.Type())
	}
	return raw, nil
}
