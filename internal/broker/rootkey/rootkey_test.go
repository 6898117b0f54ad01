package rootkey_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func root(t testing.TB) attest.Secret {
	t.Helper()
	r, err := rootkey.New()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wrap(t testing.TB, r attest.Secret, w rootkey.Way) rootkey.Slot {
	t.Helper()
	s, err := rootkey.Wrap(t.Context(), "store", r, w, now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// processor derives keys as EGETKEY does: what policy and masks cover goes into the key.
type processor struct {
	fuses      string // of the machine
	measured   byte
	attributes uint64
	cpu        byte
	configID   byte
	requests   []sgx.KeyRequest
}

func (p *processor) SelfTarget() (sgx.TargetInfo, error) {
	t := sgx.TargetInfo{Attributes: p.attributes}
	t.MREnclave[0], t.ConfigID[0] = p.measured, p.configID
	return t, nil
}

func (p *processor) CreateReport(sgx.TargetInfo, attest.ReportData) (sgx.Report, error) {
	var r sgx.Report
	r.Body.CPUSVN[0], r.Body.SVN = p.cpu, 3
	return r, nil
}

func (p *processor) Key(r sgx.KeyRequest) (key [sgx.KeySize]byte, err error) {
	p.requests = append(p.requests, r)
	if r.CPUSVN[0] > p.cpu {
		return key, errors.New("EINVAL")
	}
	m := hmac.New(sha256.New, []byte(p.fuses))
	m.Write(r.KeyID[:])
	m.Write([]byte{r.CPUSVN[0], byte(r.SVN), byte(p.attributes & r.AttributeMask)})
	if r.Policy&sgx.KeyPolicyMREnclave != 0 {
		m.Write([]byte{p.measured})
	}
	if r.Policy&sgx.KeyPolicyConfigID != 0 {
		m.Write([]byte{p.configID})
	}
	copy(key[:], m.Sum(nil))
	return key, nil
}

func TestSealIsOfThisEnclaveOnThisMachine(t *testing.T) {
	const flags = attest.AttributeInit | attest.AttributeMode64Bit
	at := func() *processor { return &processor{fuses: "one", measured: 0xaa, attributes: flags, cpu: 5} }
	key := root(t)
	own := at()
	slot := wrap(t, key, rootkey.Sealed{Processor: own})
	if own.requests[0].Policy != sgx.KeyPolicyMREnclave || own.requests[0].AttributeMask&attest.AttributeDebug == 0 {
		t.Errorf("the request is %+v", own.requests[0])
	}
	for name, c := range map[string]struct {
		change func(*processor)
		opens  bool
	}{
		"the same":                  {func(*processor) {}, true},
		"newer microcode":           {func(p *processor) { p.cpu = 6 }, true},
		"older microcode":           {func(p *processor) { p.cpu = 4 }, false},
		"another machine":           {func(p *processor) { p.fuses = "two" }, false},
		"another measurement":       {func(p *processor) { p.measured = 0xbb }, false},
		"a debug enclave":           {func(p *processor) { p.attributes |= attest.AttributeDebug }, false},
		"an enclave with other KSS": {func(p *processor) { p.attributes |= attest.AttributeKSS }, false},
	} {
		p := at()
		c.change(p)
		got, err := rootkey.Unwrap(t.Context(), "store", slot, rootkey.Sealed{Processor: p})
		if (err == nil) != c.opens || err == nil && !got.Equal(key) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// In an enclave with KSS the host chooses CONFIGID, so the key depends on it.
	kss := at()
	kss.attributes |= attest.AttributeKSS
	slot = wrap(t, key, rootkey.Sealed{Processor: kss})
	kss.configID = 1
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, rootkey.Sealed{Processor: kss}); err == nil {
		t.Error("it opens under another CONFIGID")
	}
}

func TestSealWithAnotherPolicyIsRefused(t *testing.T) {
	p := &processor{attributes: attest.AttributeInit}
	slot := wrap(t, root(t), rootkey.Sealed{Processor: p})
	slot.Params = bytes.Replace(slot.Params, []byte(`"policy":1`), []byte(`"policy":2`), 1) // MRSIGNER
	n := len(p.requests)
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, rootkey.Sealed{Processor: p}); err == nil || len(p.requests) != n {
		t.Errorf("a key for the whole signer was asked for: %v", err)
	}
}

func TestPassphrase(t *testing.T) {
	key := root(t)
	way := func(text string) rootkey.Passphrase {
		return rootkey.Passphrase{Secret: attest.NewSecret([]byte(text))}
	}
	slot := wrap(t, key, way("correct horse battery"))
	if got, err := rootkey.Unwrap(t.Context(), "store", slot, way("correct horse battery")); err != nil || !got.Equal(key) {
		t.Error(err)
	}
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, way("correct horse batterz")); attest.CodeOf(err) != attest.CodeDenied || attest.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if _, err := rootkey.Wrap(t.Context(), "store", key, way("short"), now); attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("a short one: %v", err)
	}
	slot.Params = []byte(`{"salt":"00000000000000000000000000000000","passes":3,"memory":4294967295,"lanes":4}`)
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, way("correct horse battery")); err == nil {
		t.Error("4 TiB were taken")
	}
}

func TestSharesOpenInAnyCombination(t *testing.T) {
	key := root(t)
	split := &rootkey.Split{Threshold: 3, Number: 5}
	slot := wrap(t, key, split)
	other := &rootkey.Split{Threshold: 3, Number: 5}
	otherSlot := wrap(t, key, other)
	slots := []rootkey.Slot{otherSlot, slot}
	for a := range 5 {
		for b := range a {
			for c := range b {
				var shares rootkey.Shares
				for i, n := range []int{b, c, a} {
					missing, err := shares.Add(split.Shares[n], slots)
					if err != nil || missing != 2-i {
						t.Errorf("share %d: %d missing, %v", n, missing, err)
					}
				}
				if got, err := rootkey.Unwrap(t.Context(), "store", slot, &shares); err != nil || !got.Equal(key) {
					t.Errorf("%d %d %d: %v", a, b, c, err)
				}
			}
		}
	}
	var shares rootkey.Shares
	for range 3 {
		if missing, err := shares.Add(split.Shares[0], slots); err != nil || missing != 2 {
			t.Errorf("the same share again: %d, %v", missing, err)
		}
	}
	if missing, err := shares.Add(other.Shares[1], slots); err != nil || missing != 2 { // of another sharing: it counts there
		t.Errorf("%d %v", missing, err)
	}
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, &shares); err == nil {
		t.Error("it opens with one share")
	}
	if strings.Contains(string(slot.Params), string(split.Shares[0].Expose())) {
		t.Error("the slot has a share")
	}
}

func TestWrongShareIsRecognised(t *testing.T) {
	split := &rootkey.Split{Threshold: 2, Number: 3}
	slots := []rootkey.Slot{wrap(t, root(t), split)}
	good := string(split.Shares[0].Expose())
	parts := strings.Split(good, ".")
	forged := func(change func([]string)) attest.Secret {
		p := strings.Split(good, ".")
		change(p)
		return attest.NewSecret([]byte(strings.Join(p, ".")))
	}
	for name, text := range map[string]attest.Secret{
		"a changed letter": forged(func(p []string) { p[3] = "A" + p[3][1:] }),
		"another number":   forged(func(p []string) { p[2] = "2" }),
		"another sharing":  forged(func(p []string) { p[1] = "00000000" }),
		"empty":            attest.NewSecret(nil),
		"something else":   attest.NewSecret([]byte(strings.Repeat("x", 300))),
	} {
		if _, err := new(rootkey.Shares).Add(text, slots); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := new(rootkey.Shares).Add(attest.NewSecret([]byte(strings.Join(parts, ".")+"\n")), slots); err != nil {
		t.Errorf("the good one, with a line's end: %v", err)
	}
}

func TestKeyFileIsForItsOwnerOnly(t *testing.T) {
	way := rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	key := root(t)
	slot := wrap(t, key, way)
	if got, err := rootkey.Unwrap(t.Context(), "store", slot, way); err != nil || !got.Equal(key) {
		t.Error(err)
	}
	if err := os.Chmod(way.Path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, way); attest.CodeOf(err) != attest.CodeConfig ||
		!strings.Contains(attest.HintOf(err), "chmod 600 "+way.Path) {
		t.Errorf("everyone can read it, and it was used, or the hint is %q: %v", attest.HintOf(err), err)
	}
	if err := os.Remove(way.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, way); err == nil {
		t.Error("a missing file was made anew")
	}
}

func TestSlotBelongsToItsStoreAndPlace(t *testing.T) {
	way := rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	key := root(t)
	slot := wrap(t, key, way)
	if _, err := rootkey.Unwrap(t.Context(), "another", slot, way); err == nil {
		t.Error("it opens in another store")
	}
	slot.ID = wrap(t, key, way).ID
	if _, err := rootkey.Unwrap(t.Context(), "store", slot, way); err == nil {
		t.Error("it opens under another slot's id")
	}
}

func TestLastSlotStays(t *testing.T) {
	s := memory.New()
	way := rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")}
	key := root(t)
	one, two := wrap(t, key, way), wrap(t, key, way)
	do := func(f func(store.Writer) error) error { return s.Update(t.Context(), f) }
	for _, slot := range []rootkey.Slot{one, two} {
		if err := do(func(w store.Writer) error { return rootkey.Add(w, slot) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := do(func(w store.Writer) error { return rootkey.Remove(w, one.ID) }); err != nil {
		t.Error(err)
	}
	if err := do(func(w store.Writer) error { return rootkey.Remove(w, two.ID) }); err == nil {
		t.Error("the last one was removed")
	}
}

// FuzzSlot opens slots and adds shares of an attacker's making: nothing opens, and nothing is taken from the machine.
func FuzzSlot(f *testing.F) {
	split := &rootkey.Split{Threshold: 2, Number: 3}
	key, err := rootkey.New()
	if err != nil {
		f.Fatal(err)
	}
	slot, err := rootkey.Wrap(f.Context(), "store", key, split, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(slot.Params), split.Shares[0].Expose())
	f.Add([]byte(`{"salt":"0000000000000000","passes":1,"memory":8192,"lanes":1}`), []byte("sesame-share-1.a.1.b.c"))
	f.Fuzz(func(t *testing.T, params, share []byte) {
		if !json.Valid(params) {
			t.Skip()
		}
		forged := rootkey.Slot{Kind: "shares", Params: params, Wrapped: slot.Wrapped}
		var shares rootkey.Shares
		_, _ = shares.Add(attest.NewSecret(bytes.Clone(share)), []rootkey.Slot{forged})
		if _, err := rootkey.Unwrap(t.Context(), "store", forged, &shares); err == nil {
			t.Error("it opens")
		}
		forged.Kind = "sealed"
		if _, err := rootkey.Unwrap(t.Context(), "store", forged, rootkey.Sealed{Processor: &processor{}}); err == nil {
			t.Error("it opens")
		}
	})
}
