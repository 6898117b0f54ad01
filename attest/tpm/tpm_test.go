package tpm_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/swtpm"
)

var made struct {
	once     sync.Once
	dir      string
	machines [2]*swtpm.Machine
	err      error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if made.dir != "" {
		_ = os.RemoveAll(made.dir)
	}
	os.Exit(code)
}

// machine powers on the n-th machine of this run of tests until the test ends.
func machine(t testing.TB, n int) (socket string, certificates []*x509.Certificate) {
	t.Helper()
	socket, stop := powerOn(t, n)
	t.Cleanup(stop)
	certificates, err := made.machines[n].Certificates()
	if err != nil {
		t.Fatal(err)
	}
	return socket, certificates
}

func powerOn(t testing.TB, n int) (socket string, off func()) {
	t.Helper()
	testenv.Program(t, "swtpm", swtpm.Program, "swtpm swtpm-tools")
	made.once.Do(func() {
		if made.dir, made.err = os.MkdirTemp("", "swtpm"); made.err != nil {
			return
		}
		for i := range made.machines {
			made.machines[i], made.err = swtpm.New(context.Background(), filepath.Join(made.dir, string(rune('a'+i))))
			if made.err != nil {
				return
			}
		}
	})
	if made.err != nil {
		t.Fatal(made.err)
	}
	running, err := made.machines[n].Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return running.Socket, func() { _ = running.Stop() }
}

func open(t testing.TB, o tpm.Options) *tpm.Device {
	t.Helper()
	d, err := tpm.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// extend measures a digest into a register.
func extend(t testing.TB, socket string, register int, digest []byte) {
	t.Helper()
	rw, err := tpm2.OpenTPM(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := tpm2.PCRExtend(rw, tpmutil.Handle(register), tpm2.AlgSHA256, digest, ""); err != nil {
		t.Fatal(err)
	}
}

func claims(t testing.TB, d *tpm.Device, v *tpm.Verifier, data attest.ReportData) attest.Claims {
	t.Helper()
	e, err := d.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Verify(t.Context(), e, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var verifier = &tpm.Verifier{}

func TestEvidenceBindsReportDataRegistersAndKey(t *testing.T) {
	socket, certificates := machine(t, 0)
	d := open(t, tpm.Options{Path: socket, EK: true, Chain: certificates})
	data := attest.ReportData{1, 2, 63: 3}
	first := claims(t, d, verifier, data)
	if first.Type != attest.TPM || first.ReportData != data || len(first.TPM.PCRs) != 24 {
		t.Fatalf("claims are %+v", first)
	}
	root := sha256.Sum256(certificates[1].Raw)
	if first.TPM.EKRoot != root || len(first.TPM.EKPublic) == 0 || first.TPM.EventLog {
		t.Errorf("endorsement is %x, want the root %x", first.TPM.EKRoot, root)
	}
	digest := sha256.Sum256([]byte("kernel"))
	extend(t, socket, 9, digest[:])
	second := claims(t, d, verifier, attest.ReportData{9})
	if want := sha256.Sum256(append(make([]byte, 32), digest[:]...)); second.TPM.PCRs[9] != want {
		t.Errorf("register 9 is %x, want %x", second.TPM.PCRs[9], want)
	}
	if second.TPM.AK != first.TPM.AK {
		t.Error("the kept key has changed")
	}
	wanted := policy.Policy{TPM: []policy.TPM{{AK: first.TPM.AK[:], PCRs: policy.PCRs{9: append([]byte(nil), make([]byte, 32)...)}}}}
	if err := wanted.Appraise(first, time.Now()).Err(); err != nil {
		t.Error(err)
	}
	if wanted.Appraise(second, time.Now()).Accepted {
		t.Error("another kernel is accepted")
	}
}

func TestKeptKeySurvivesRebootsAndAnotherMachineHasAnother(t *testing.T) {
	socket, stop := powerOn(t, 0)
	before := claims(t, open(t, tpm.Options{Path: socket}), verifier, attest.ReportData{})
	extend(t, socket, 9, make([]byte, 32))
	stop()
	socket, _ = machine(t, 0)
	after := claims(t, open(t, tpm.Options{Path: socket}), verifier, attest.ReportData{})
	if after.TPM.PCRs[9] != [32]byte{} {
		t.Error("this was no reboot")
	}
	other, _ := machine(t, 1)
	elsewhere := claims(t, open(t, tpm.Options{Path: other}), verifier, attest.ReportData{})
	if before.TPM.AK != after.TPM.AK || before.TPM.AK == elsewhere.TPM.AK {
		t.Errorf("keys are %x, %x and %x", before.TPM.AK, after.TPM.AK, elsewhere.TPM.AK)
	}
}

func TestEphemeralKeyIsNewEveryTime(t *testing.T) {
	socket, _ := machine(t, 0)
	d := open(t, tpm.Options{Path: socket, EphemeralAK: true, PCRs: []int{0, 7}})
	one, two := claims(t, d, verifier, attest.ReportData{}), claims(t, d, verifier, attest.ReportData{})
	if one.TPM.AK == two.TPM.AK || len(one.TPM.PCRs) != 2 {
		t.Errorf("keys are %x and %x, with %d registers", one.TPM.AK, two.TPM.AK, len(one.TPM.PCRs))
	}
}

func TestWrappedSecretOpensOnThatMachineInThatStateOnly(t *testing.T) {
	socket, certificates := machine(t, 0)
	d := open(t, tpm.Options{Path: socket, EK: true, Chain: certificates})
	c := claims(t, d, verifier, attest.ReportData{})
	const canary = "canary-2f81, longer than a TPM seals: 0123456789012345678901234567890123456789012345678901234567890123456789" +
		"0123456789012345678901234567890123456789"
	blob, err := tpm.Wrap(c.TPM, []int{0, 11}, attest.NewSecret([]byte(canary)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := d.Unwrap(t.Context(), blob)
		if err != nil || string(got.Expose()) != canary {
			t.Fatalf("secret of %d bytes, error %v", got.Len(), err)
		}
	}
	changed := append([]byte(nil), blob...)
	changed[len(changed)-1] ^= 1
	if _, err := d.Unwrap(t.Context(), changed); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("a changed blob: %v", err)
	}
	otherSocket, _ := machine(t, 1)
	other := open(t, tpm.Options{Path: otherSocket})
	if _, err := other.Unwrap(t.Context(), blob); attest.CodeOf(err) != attest.CodeSecret || attest.HintOf(err) == "" {
		t.Errorf("another machine: %v", err)
	}
	extend(t, socket, 11, make([]byte, 32))
	if _, err := d.Unwrap(t.Context(), blob); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("another state: %v", err)
	}
	if _, err := tpm.Wrap(c.TPM, nil, attest.NewSecret([]byte(canary))); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("wrapping to no registers: %v", err)
	}
	if _, err := tpm.Wrap(&attest.TPMClaims{}, []int{0}, attest.NewSecret([]byte(canary))); attest.CodeOf(err) != attest.CodeSecret {
		t.Errorf("wrapping to no key: %v", err)
	}
}

func TestNoTPMIsAnErrorWithWhatToDo(t *testing.T) {
	_, err := tpm.Open(tpm.Options{Path: filepath.Join(t.TempDir(), "tpmrm0")})
	if attest.CodeOf(err) != attest.CodeAttester || attest.HintOf(err) == "" {
		t.Errorf("error is %v", err)
	}
	if _, err := tpm.Open(tpm.Options{PCRs: []int{24}}); attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("register 24: %v", err)
	}
}

// TestPreparedKeysAreTheSameAndNeedNoMaking: a key that was made once is loaded as the TPM has saved it.
func TestPreparedKeysAreTheSameAndNeedNoMaking(t *testing.T) {
	socket, _ := machine(t, 0)
	takeOutEK(t, socket)
	plain := claims(t, open(t, tpm.Options{Path: socket, EK: true}), verifier, attest.ReportData{1})
	d := open(t, tpm.Options{Path: socket, EK: true})
	if err := d.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := tpm.Kept(d); n != 2 {
		t.Errorf("%d keys are prepared, want AK and EK", n)
	}
	for i := range 5 { // a key that stays loaded fills the TPM's three slots
		got := claims(t, d, verifier, attest.ReportData{byte(i)})
		if got.TPM.AK != plain.TPM.AK || got.TPM.EK != plain.TPM.EK {
			t.Errorf("quote %d is of other keys", i)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Prepare(ended); attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("after its context's end: %v", err)
	}
}

// TestAKeptEKIsTheSameKey, and nothing else is overwritten.
func TestAKeptEKIsTheSameKey(t *testing.T) {
	socket, _ := machine(t, 1)
	d := open(t, tpm.Options{Path: socket, EK: true})
	kept := claims(t, d, verifier, attest.ReportData{1})
	takeOutEK(t, socket)
	before := claims(t, d, verifier, attest.ReportData{1})
	if d.HasEK() {
		t.Fatal("the TPM keeps it already")
	}
	for range 2 {
		if err := d.KeepEK(); err != nil {
			t.Fatal(err)
		}
	}
	other := open(t, tpm.Options{Path: socket, EK: true})
	if !other.HasEK() || claims(t, other, verifier, attest.ReportData{1}).TPM.EK != before.TPM.EK {
		t.Error("it is another key")
	}
	if before.TPM.EK != kept.TPM.EK {
		t.Error("it is another key than that of the TPM's maker")
	}
}

// takeOutEK has the TPM forget the endorsement key, which swtpm_setup lets it keep, until the test ends.
func takeOutEK(t *testing.T, socket string) {
	t.Helper()
	rw, err := tpm2.OpenTPM(socket)
	if err != nil {
		t.Fatal(err)
	}
	const reserved = tpmutil.Handle(0x81010001)
	if err := tpm2.EvictControl(rw, "", tpm2.HandleOwner, reserved, reserved); err != nil {
		t.Fatal(err)
	}
	d := open(t, tpm.Options{Path: socket})
	if d.HasEK() {
		t.Fatal("the TPM still keeps the key")
	}
	t.Cleanup(func() {
		if err := d.KeepEK(); err != nil {
			t.Error(err)
		}
	})
}

func TestACredentialOpensForBothKeysOfOneTPMOnly(t *testing.T) {
	socket, _ := machine(t, 0)
	otherSocket, _ := machine(t, 1)
	for name, o := range map[string]tpm.Options{"kept": {Path: socket, EK: true}, "ephemeral": {Path: socket, EK: true, EphemeralAK: true}} {
		d := open(t, o)
		o.Path = otherSocket
		other := open(t, o)
		quoted := evidence(t, d)
		c := verified(t, quoted)
		credential, secret, err := tpm.NewCredential(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.Activate(t.Context(), quoted, credential.Blob, credential.Seed)
		if err != nil || !bytes.Equal(got.Expose(), secret.Expose()) || got.Len() != 32 {
			t.Errorf("%s: %d bytes, %v", name, got.Len(), err)
		}
		if _, err := other.Activate(t.Context(), quoted, credential.Blob, credential.Seed); attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("%s: another TPM: %v", name, err)
		}
		if _, err := other.Activate(t.Context(), evidence(t, other), credential.Blob, credential.Seed); attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("%s: another TPM with evidence of its own: %v", name, err)
		}
		stolen := *verified(t, evidence(t, other)) // its attestation key beside this machine's endorsement key
		stolen.EK, stolen.EKPublic = c.EK, c.EKPublic
		if credential, _, err = tpm.NewCredential(&stolen); err != nil {
			t.Fatal(err)
		}
		for _, a := range []*tpm.Device{d, other} {
			if _, err := a.Activate(t.Context(), evidence(t, a), credential.Blob, credential.Seed); err == nil {
				t.Errorf("%s: a credential for keys of two TPMs opens", name)
			}
		}
	}
}

func evidence(t testing.TB, d *tpm.Device) attest.Evidence {
	t.Helper()
	e, err := d.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func verified(t testing.TB, e attest.Evidence) *attest.TPMClaims {
	t.Helper()
	c, err := verifier.Verify(t.Context(), e, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c.TPM
}

func TestAnEndorsementKeyOfAnotherKindIsRefusedByName(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"P-384": &curve.PublicKey, "RSA-3072": &large.PublicKey} {
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = tpm.NewCredential(&attest.TPMClaims{AKName: make([]byte, 34), EKPublic: spki})
		if attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
