package attesttest

import (
	"bytes"
	"context"
	"slices"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// Rebound is an attester whose evidence binds other data than it is asked for.
type Rebound struct {
	attest.Attester
	Data func(asked attest.ReportData) attest.ReportData
}

// Evidence implements [attest.Attester].
func (r Rebound) Evidence(ctx context.Context, asked attest.ReportData) (attest.Evidence, error) {
	return r.Attester.Evidence(ctx, r.Data(asked))
}

// OtherMeanings makes, by name, report data of other uses that comes as near as it can to the data that a verifier wants:
// of every producer, with the wanted data in each place that it leaves free; and the wanted data with another second
// half. A verifier must refuse them all.
func OtherMeanings() map[string]func(asked attest.ReportData) attest.ReportData {
	meanings := map[string]func(attest.ReportData) attest.ReportData{}
	for _, p := range reportdata.All() {
		meanings[p.String()] = func(asked attest.ReportData) attest.ReportData { return nearest(p, asked) }
	}
	for i, name := range map[int]string{32: "byte 32 changed", 63: "byte 63 changed"} {
		meanings[name] = func(asked attest.ReportData) attest.ReportData {
			asked[i] ^= 1
			return asked
		}
	}
	meanings["second half replaced"] = func(asked attest.ReportData) attest.ReportData {
		copy(asked[32:], bytes.Repeat([]byte{0xa5}, 32))
		return asked
	}
	return meanings
}

func nearest(p reportdata.Producer, asked attest.ReportData) attest.ReportData {
	input := slices.Concat([]byte(p.Begins()), asked[:], asked[:])
	if p.Size() > 0 {
		input = input[:p.Size()]
	}
	var data attest.ReportData
	var err error
	switch p.Layout() {
	case reportdata.RawThenHash:
		data, err = p.DataAfter([32]byte(asked[:32]), input)
	case reportdata.ExtraData:
		var extra [32]byte
		extra, err = p.Extra(input)
		copy(data[:], extra[:])
	default:
		data, err = p.Data(input)
	}
	if err != nil {
		panic(err) // the input has the producer's form
	}
	return data
}
