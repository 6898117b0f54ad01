// Package tsmtest is configfs-tsm for tests: a machine whose firmware the test plays. It must not be imported by
// programs.
package tsmtest

import (
	"crypto/rand"
	"os"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"

	"github.com/sesame-init/sesame/attest"
)

// Firmware answers a request for a report.
type Firmware struct {
	Provider string
	// Report returns the report over data, and the certificates that the host adds.
	Report func(data attest.ReportData) (report, certificates []byte, err error)
}

// Client is a machine with this firmware.
func Client(f Firmware) configfsi.Client {
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": &faketsm.ReportSubsystem{
		Random:      rand.Reader,
		CheckInAttr: func(*faketsm.ReportEntry, string, []byte) error { return nil },
		MakeEntry: func() *faketsm.ReportEntry {
			return &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}, "privlevel": {}}}
		},
		ReadAttr: func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
			if attr == "provider" {
				return []byte(f.Provider + "\n"), nil
			}
			var data attest.ReportData
			copy(data[:], e.InAttrs["inblob"].Value)
			report, certificates, err := f.Report(data)
			switch attr {
			case "outblob":
				return report, err
			case "auxblob":
				return certificates, err
			}
			return nil, os.ErrNotExist
		},
	}}}
}
