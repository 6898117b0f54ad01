package releaselog_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
)

// everyKind are claims of each type in which every field has a value of its own.
func everyKind() []attest.Claims {
	fill := func(b []byte, first byte) {
		for i := range b {
			b[i] = first + byte(i)
		}
	}
	tcb := attest.TCB{Status: tcbstatus.OutOfDate, Advisories: []string{"INTEL-SA-00001", "<\x1b>"},
		Date: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), EvaluationNumber: 17}
	enclave := &attest.SGXClaims{ProductID: 3, SVN: 4, Attributes: attest.AttributeInit | attest.AttributeDebug}
	fill(enclave.MREnclave[:], 1)
	fill(enclave.MRSigner[:], 2)
	fill(enclave.CPUSVN[:], 3)
	named := *enclave
	named.Attributes = attest.AttributeInit
	fill(named.ConfigID[:], 4)
	domain := &attest.TDXClaims{Attributes: 1}
	fill(domain.MRTD[:], 5)
	fill(domain.RTMR[2][:], 6)
	fill(domain.TCBSVN[:], 7)
	guest := &attest.SNPClaims{Policy: attest.SNPPolicyDebug}
	fill(guest.Measurement[:], 8)
	fill(guest.HostData[:], 9)
	fill(guest.ChipID[:], 10)
	machine := &attest.TPMClaims{AK: [32]byte{11}, EK: [32]byte{12}, PCRs: map[int][32]byte{11: {13}, 7: {14}}}
	return []attest.Claims{
		{Type: attest.SGX, SGX: enclave, TCB: tcb}, {Type: attest.SGX, SGX: &named, TCB: tcb},
		{Type: attest.SGX, SGX: &attest.SGXClaims{}}, {Type: attest.TDX, TDX: domain, TCB: tcb},
		{Type: attest.SNP, SNP: guest}, {Type: attest.TPM, TPM: machine}, {Type: attest.TPM, TPM: &attest.TPMClaims{}},
	}
}

// TestEntriesAreByteForByteAsEver: an entry is hashed and signed, and auditors keep old ones.
func TestEntriesAreByteForByteAsEver(t *testing.T) {
	var got bytes.Buffer
	for _, c := range everyKind() {
		text, err := releaselog.Entry{Kind: releaselog.Release, Time: "t", Claims: releaselog.ClaimsOf(c), Code: "x"}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got.Write(append(text, '\n'))
		if _, err := releaselog.Parse(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	want, err := os.ReadFile(filepath.Join("testdata", "entries.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("entries are\n%s\nwant\n%s", got.Bytes(), want)
	}
}

// TestClaimsHaveOneForm: what an older or newer broker keeps of a type that this program does not know is read, but no two
// texts are one entry.
func TestClaimsHaveOneForm(t *testing.T) {
	const head, tail = `{"format":1,"kind":"release","time":"t","claims":`, `}`
	foreign := head + `{"type":"toy","colour":"red","tags":["a",7],"debug":true}` + tail
	e, err := releaselog.Parse([]byte(foreign))
	if err != nil || e.Claims.Type != "toy" || string(e.Claims.Record) != `{"colour":"red","tags":["a",7]}` || !e.Claims.Debug {
		t.Fatalf("%+v, %v", e, err)
	}
	for _, claims := range []string{
		`{"type":"toy","colour":"red","colour":"red"}`, `{"type":"toy","debug":true,"debug":true}`, `{"type":"toy","type":"toy"}`,
		`{"type":"toy","colour":"\u0072ed"}`, `{"type":"toy","colour": "red"}`, `{"type":"toy","debug":true,"colour":"red"}`,
		`{"colour":"red","type":"toy"}`, `{"type":"toy","more":{"a":1,"a":2}}`, `{"type":"toy","debug":false}`, `[]`, `{"type":7}`,
		`{"type":"toy","c\u006flour":"red"}`,
	} {
		if _, err := releaselog.Parse([]byte(head + claims + tail)); err == nil {
			t.Errorf("%s is taken", claims)
		}
	}
}
