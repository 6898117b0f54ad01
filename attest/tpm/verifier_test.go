package tpm_test

import (
	"bytes"
	"crypto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-tpm/legacy/tpm2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/lab/attesttest"
)

// fresh makes evidence and returns it with the device that made it.
func fresh(t testing.TB, o tpm.Options) (*tpm.Device, attest.Evidence) {
	t.Helper()
	d := open(t, o)
	e, err := d.Evidence(t.Context(), attest.ReportData{7})
	if err != nil {
		t.Fatal(err)
	}
	return d, e
}

func TestChangedEvidenceIsRefused(t *testing.T) {
	socket, certificates := machine(t, 0)
	otherSocket, otherCertificates := machine(t, 1)
	_, good := fresh(t, tpm.Options{Path: socket, EK: true, Chain: certificates})
	_, other := fresh(t, tpm.Options{Path: otherSocket, EK: true, Chain: otherCertificates})
	_, replayed := fresh(t, tpm.Options{Path: socket, EK: true, Chain: certificates, PCRs: []int{0}})
	var stranger, fewer tpm.Evidence
	for from, to := range map[*attest.Evidence]*tpm.Evidence{&other: &stranger, &replayed: &fewer} {
		if _, err := tpm.Change(*from, func(e *tpm.Evidence) { *to = *e }); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*tpm.Evidence){
		"version":                      func(e *tpm.Evidence) { e.Version = 2 },
		"report data":                  func(e *tpm.Evidence) { e.ReportData[63] ^= 1 },
		"short report data":            func(e *tpm.Evidence) { e.ReportData = e.ReportData[:63] },
		"register":                     func(e *tpm.Evidence) { e.PCRs[3] = bytes.Repeat([]byte{1}, 32) },
		"register left out":            func(e *tpm.Evidence) { delete(e.PCRs, 3) },
		"registers swapped":            func(e *tpm.Evidence) { e.PCRs[0], e.PCRs[17] = e.PCRs[17], e.PCRs[0] },
		"register 24":                  func(e *tpm.Evidence) { e.PCRs[24] = make([]byte, 32) },
		"no register":                  func(e *tpm.Evidence) { e.PCRs = nil },
		"quote":                        func(e *tpm.Evidence) { e.Quote[len(e.Quote)-1] ^= 1 },
		"quote's magic":                func(e *tpm.Evidence) { e.Quote[0] ^= 1 },
		"signature":                    func(e *tpm.Evidence) { e.Signature[len(e.Signature)-1] ^= 1 },
		"no signature":                 func(e *tpm.Evidence) { e.Signature = nil },
		"other key":                    func(e *tpm.Evidence) { e.AK = stranger.AK },
		"attributes of the key":        func(e *tpm.Evidence) { e.AK[5] ^= 1 },
		"quote of fewer":               func(e *tpm.Evidence) { e.Quote, e.Signature = fewer.Quote, fewer.Signature },
		"other endorsement":            func(e *tpm.Evidence) { e.EK, e.Chain = stranger.EK, stranger.Chain },
		"no endorsement":               func(e *tpm.Evidence) { e.EK, e.Chain = nil, nil },
		"certificate of another":       func(e *tpm.Evidence) { e.Chain = stranger.Chain },
		"certificate without key":      func(e *tpm.Evidence) { e.EK = nil },
		"log of nothing":               func(e *tpm.Evidence) { e.Log = tpm.Compress([]byte("no log")) },
		"log that is not packed":       func(e *tpm.Evidence) { e.Log = []byte("no log") },
		"log that unpacks to too much": func(e *tpm.Evidence) { e.Log = tpm.Compress(make([]byte, tpm.MaxLog+1)) },
	} {
		bad, err := tpm.Change(good, change)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifier.Verify(t.Context(), bad, time.Now()); attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	if _, err := verifier.Verify(t.Context(), good, time.Now()); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]attest.Evidence{
		"type": {Type: attest.SGX, Raw: good.Raw}, "empty": {Type: attest.TPM},
		"tail": {Type: attest.TPM, Raw: append(bytes.Clone(good.Raw), 0)}, "cut": {Type: attest.TPM, Raw: good.Raw[:len(good.Raw)-1]},
		"large": {Type: attest.TPM, Raw: make([]byte, tpm.MaxEvidence+1)},
	} {
		if _, err := verifier.Verify(t.Context(), bad, time.Now()); attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestChainThatDoesNotHoldNamesNoRoot(t *testing.T) {
	socket, certificates := machine(t, 0)
	_, otherCertificates := machine(t, 1)
	_, alone := fresh(t, tpm.Options{Path: socket, EK: true})
	for name, test := range map[string]struct {
		verifier tpm.Verifier
		at       time.Time
		complete bool
	}{
		"no certificates":         {tpm.Verifier{}, time.Now(), false},
		"without the issuer":      {tpm.Verifier{Certificates: certificates[1:]}, time.Now(), false},
		"another's":               {tpm.Verifier{Certificates: otherCertificates}, time.Now(), false},
		"before its time":         {tpm.Verifier{Certificates: certificates}, time.Now().AddDate(-1, 0, 0), false},
		"verifier's certificates": {tpm.Verifier{Certificates: append(certificates, otherCertificates...)}, time.Now(), true},
	} {
		c, err := test.verifier.Verify(t.Context(), alone, test.at)
		if err != nil || len(c.TPM.EKPublic) == 0 || (c.TPM.EKRoot != [32]byte{}) != test.complete {
			t.Errorf("%s: %v, root %x", name, err, c.TPM.EKRoot)
		}
	}
}

// boot measures what a firmware log says.
func boot(t *testing.T, socket string, log []byte) {
	t.Helper()
	parsed, err := tcg.ParseEventLog(log, tcg.ParseOpts{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range parsed.Events(register.HashSHA256) {
		if e.UntrustedType() != tcg.NoAction {
			extend(t, socket, int(e.MRIndex()), e.ReplayedDigest())
		}
	}
}

func TestFirmwareLogTellsSecureBootOnlyIfItReplays(t *testing.T) {
	for name, on := range map[string]bool{"arch-linux-workstation": false, "eventlogwithsp800155": true, "ubuntu-2104-no-secure-boot": false} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".bin")
			log, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			socket, _ := machine(t, 0)
			boot(t, socket, log)
			d, good := fresh(t, tpm.Options{Path: socket, Log: path})
			t.Logf("log of %d bytes, evidence of %d", len(log), len(good.Raw))
			c, err := verifier.Verify(t.Context(), good, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if !c.TPM.EventLog || c.TPM.SecureBoot != on {
				t.Errorf("log %t, Secure Boot %t", c.TPM.EventLog, c.TPM.SecureBoot)
			}
			extend(t, socket, 7, make([]byte, 32)) // something that the log does not know
			later, err := d.Evidence(t.Context(), attest.ReportData{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := verifier.Verify(t.Context(), later, time.Now()); err == nil || !strings.Contains(err.Error(), "does not replay") {
				t.Errorf("error is %v", err)
			}
		})
	}
	if d := open(t, tpm.Options{Path: socketOf(t), Log: filepath.Join(t.TempDir(), "none")}); d != nil {
		if _, err := d.Evidence(t.Context(), attest.ReportData{}); attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("a log that is not there: %v", err)
		}
	}
}

func socketOf(t *testing.T) string {
	socket, _ := machine(t, 1)
	return socket
}

func TestUnrestrictedKeyIsRefused(t *testing.T) {
	socket, _ := machine(t, 0)
	_, good := fresh(t, tpm.Options{Path: socket})
	bad, err := tpm.Change(good, func(e *tpm.Evidence) {
		public, err := tpm2.DecodePublic(e.AK)
		if err != nil {
			t.Fatal(err)
		}
		public.Attributes &^= tpm2.FlagRestricted
		if e.AK, err = public.Encode(); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Verify(t.Context(), bad, time.Now()); err == nil || !strings.Contains(err.Error(), "not restricted") {
		t.Errorf("error is %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	for _, name := range []string{"good.evidence"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := verifier.Verify(t.Context(), attest.Evidence{Type: attest.TPM, Raw: raw}, time.Unix(1767225600, 0))
		if (err == nil) != (c.TPM != nil) || err != nil && attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("claims %+v with error %v", c, err)
		}
	})
}

// FuzzLog reads firmware logs as [tpm.Verifier] does: the sender chooses the key, so anyone can send any log.
func FuzzLog(f *testing.F) {
	logs, err := filepath.Glob("testdata/*.bin")
	if err != nil || len(logs) == 0 {
		f.Fatal(err)
	}
	for _, name := range logs {
		log, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(log)
	}
	var zero []register.MR
	for i := range 24 {
		zero = append(zero, register.PCR{Index: i, Digest: make([]byte, 32), DigestAlg: crypto.SHA256})
	}
	f.Fuzz(func(_ *testing.T, log []byte) { _, _ = tcg.ParseAndReplay(log, zero, tcg.ParseOpts{}) })
}

// A quote covers one meaning: report data of another use in its place is refused.
func TestAQuoteCoversNoOtherReportData(t *testing.T) {
	socket, _ := machine(t, 0)
	_, good := fresh(t, tpm.Options{Path: socket})
	if _, err := new(tpm.Verifier).Verify(t.Context(), good, time.Now()); err != nil {
		t.Fatal(err)
	}
	for name, other := range attesttest.OtherMeanings() {
		changed, err := tpm.Change(good, func(e *tpm.Evidence) {
			data := other(attest.ReportData(e.ReportData))
			e.ReportData = data[:]
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := new(tpm.Verifier).Verify(t.Context(), changed, time.Now()); attest.CodeOf(err) != attest.CodeEvidence {
			t.Errorf("%s: %v", name, err)
		}
	}
}
