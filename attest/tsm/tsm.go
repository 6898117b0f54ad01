// Package tsm collects the reports of confidential VMs through Linux' own interface, configfs-tsm
// (Documentation/ABI/testing/configfs-tsm, Linux 6.7), by github.com/google/go-configfs-tsm. Packages attest/tdx and
// attest/snp make evidence of them.
package tsm

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/sesame-init/sesame/attest"
)

// Bounds in bytes.
const (
	MaxReport = 48 << 10
	MaxAux    = 12 << 10
)

// Client is configfs: [Open] makes it.
type Client = configfsi.Client

// Open finds configfs. The error's code is [attest.CodeAttester].
func Open() (Client, error) {
	client, err := linuxtsm.MakeClient()
	if err != nil {
		return nil, attest.Errorf(attest.CodeAttester, "opening configfs-tsm",
			"It needs a confidential VM with Linux 6.7 or newer, and: mount -t configfs none /sys/kernel/config.", "%w", err)
	}
	return client, nil
}

// Report asks the named provider ("tdx_guest", "sev_guest") for a report over data, and for what certifies it where aux
// is set. The error's code is [attest.CodeAttester].
func Report(client Client, provider string, data attest.ReportData, aux bool) (out, certificates []byte, err error) {
	const step = "asking configfs-tsm for a report"
	response, err := report.Get(client, &report.Request{InBlob: data[:], GetAuxBlob: aux})
	if err != nil {
		hint := ""
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			hint = "Mount configfs, load the module " + provider + ", and run as root."
		}
		return nil, nil, attest.Errorf(attest.CodeAttester, step, hint, "%w", err)
	}
	if strings.TrimSpace(response.Provider) != provider { // the kernel ends the line
		return nil, nil, attest.Errorf(attest.CodeAttester, step, "Name the attester that this machine has in the config.",
			"the machine's provider is %.32q, not %s", response.Provider, provider)
	}
	if len(response.OutBlob) == 0 || len(response.OutBlob) > MaxReport || len(response.AuxBlob) > MaxAux {
		return nil, nil, attest.Errorf(attest.CodeAttester, step, "",
			"%w", fmt.Errorf("a report of %d bytes with %d of certificates", len(response.OutBlob), len(response.AuxBlob)))
	}
	return response.OutBlob, response.AuxBlob, nil
}
