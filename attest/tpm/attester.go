package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/google/go-tpm-tools/client"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	"github.com/sesame-init/sesame/attest"
)

// LogPath is the file in which Linux shows the firmware's log of measurements.
const LogPath = "/sys/kernel/security/tpm0/binary_bios_measurements"

// DefaultDevice is the TPM behind the kernel's resource manager.
const DefaultDevice = "/dev/tpmrm0"

// Options of a [Device]. The zero value quotes all registers with the kept AK.
type Options struct {
	// Path is a device, or the unix socket of a software TPM. Default [DefaultDevice].
	Path string
	// PCRs are the registers to quote. Default all 24.
	PCRs []int
	// EphemeralAK makes a new AK for every quote.
	EphemeralAK bool
	// EK puts the RSA endorsement key and its certificate, if the TPM has one, into the evidence, so that what is
	// released can be wrapped to it.
	EK bool
	// Chain are certificates above the EK's, which a TPM rarely holds itself: intermediates, then the root.
	Chain []*x509.Certificate
	// Log is a file with the firmware's log; "" sends none.
	Log string
}

// Device is a TPM. It is an [attest.Attester], is safe for concurrent use and, but for [Device.KeepEK], writes
// nothing to the TPM.
type Device struct {
	options Options

	mu   sync.Mutex
	rw   io.ReadWriteCloser
	made []ephemeral               // the latest last, at most maxEphemeral
	kept map[tpmutil.Handle][]byte // saved contexts of the primary keys of a hierarchy: AK and EK
}

// ephemeral is a key that was made for one quote: from the template's unique field its TPM makes it again.
type ephemeral struct{ public, unique []byte }

// maxEphemeral bounds the keys that are remembered: sessions that wait for a challenge at the same time.
const maxEphemeral = 16

const stepQuote = "making TPM evidence"

// Open opens a TPM. The error's code is [attest.CodeAttester].
func Open(o Options) (*Device, error) {
	if o.Path == "" {
		o.Path = DefaultDevice
	}
	for _, i := range o.PCRs {
		if i < 0 || i > 23 {
			return nil, attest.Errorf(attest.CodeAttester, "opening TPM", "", "there is no register %d", i)
		}
	}
	if len(o.PCRs) == 0 {
		for i := range 24 {
			o.PCRs = append(o.PCRs, i)
		}
	}
	rw, err := tpm2.OpenTPM(o.Path)
	if err != nil {
		hint := "Check that the path is a TPM 2.0, and that this process may open it."
		if errors.Is(err, fs.ErrNotExist) {
			hint = "Give the machine a TPM, or name the right path; a container needs --device " + DefaultDevice + "."
		}
		return nil, attest.Errorf(attest.CodeAttester, "opening TPM", hint, "%s: %w", o.Path, err)
	}
	return &Device{options: o, rw: rw}, nil
}

// Close gives the TPM back.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if emulator, ok := d.rw.(*tpmutil.EmulatorReadWriteCloser); ok {
		_ = emulator.Close() // has a connection only during a command, and complains that it has none
		return nil
	}
	return d.rw.Close()
}

// Type implements [attest.Attester].
func (*Device) Type() attest.EvidenceType { return attest.TPM }

// Evidence implements [attest.Attester].
func (d *Device) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	fail := func(hint string, err error) (attest.Evidence, error) {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, stepQuote, hint, "%w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fail("", err)
	}
	e := &evidence{Version: 1, ReportData: data[:]}
	if d.options.EK {
		if err := d.addEK(e); err != nil {
			return fail("", err)
		}
	}
	if err := d.quote(e); err != nil {
		return fail("", err)
	}
	if d.options.Log != "" {
		log, err := readLog(d.options.Log)
		if err != nil {
			return fail("Leave the log out if the policy does not ask for Secure Boot.", err)
		}
		e.Log = compress(log)
	}
	raw, err := e.marshal()
	if err != nil {
		return fail("Leave the firmware log out, or quote fewer registers.", err)
	}
	return attest.Evidence{Type: attest.TPM, Raw: raw}, nil
}

func readLog(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	log, err := io.ReadAll(io.LimitReader(f, MaxLog+1))
	if err == nil && len(log) > MaxLog {
		err = fmt.Errorf("%s has more than %d bytes", path, MaxLog)
	}
	return log, err
}

// quote fills in the AK's part.
func (d *Device) quote(e *evidence) error {
	var unique []byte
	if d.options.EphemeralAK {
		unique = make([]byte, 32)
		if _, err := io.ReadFull(rand.Reader, unique); err != nil {
			return err
		}
	}
	ak, public, err := d.attestationKey(unique)
	if err != nil {
		return err
	}
	defer ak.Close()
	e.AK = public
	if unique != nil {
		d.made = append(d.made, ephemeral{public, unique})
		d.made = d.made[max(0, len(d.made)-maxEphemeral):]
	}
	quoted, err := d.quoteRetrying(ak, e.extraData())
	if err != nil {
		return err
	}
	e.Quote, e.Signature, e.PCRs = quoted.GetQuote(), quoted.GetRawSig(), map[int][]byte{}
	for i, value := range quoted.GetPcrs().GetPcrs() {
		e.PCRs[int(i)] = value
	}
	return nil
}

// attestationKey loads the kept AK or, with a value that is unique to it, an ephemeral one.
func (d *Device) attestationKey(unique []byte) (ak *client.Key, public []byte, err error) {
	template := client.AKTemplateECC()
	// The key has no password that could be guessed. Without this a machine that loses power too often locks itself out.
	template.Attributes |= tpm2.FlagNoDA
	if unique != nil {
		template.ECCParameters.Point.XRaw = unique
	}
	if unique != nil {
		ak, err = client.NewKey(d.rw, tpm2.HandleOwner, template)
	} else {
		ak, err = d.primary(tpm2.HandleOwner, template)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("loading the attestation key: %w", err)
	}
	if public, err = ak.PublicArea().Encode(); err != nil {
		ak.Close()
	}
	return ak, public, err
}

// madeKey loads the AK that this device has quoted with, by its public area.
func (d *Device) madeKey(wanted []byte) (*client.Key, error) {
	var unique []byte
	if i := slices.IndexFunc(d.made, func(e ephemeral) bool { return bytes.Equal(e.public, wanted) }); i >= 0 {
		unique = d.made[i].unique
	}
	ak, public, err := d.attestationKey(unique)
	if err == nil && !bytes.Equal(public, wanted) {
		ak.Close()
		err = errors.New("the evidence is not of an attestation key of this device")
	}
	return ak, err
}

// quoteRetrying quotes again if a register was extended between the quote and its reading, as the kernel's
// measurements of files do.
func (d *Device) quoteRetrying(ak *client.Key, extra []byte) (*tpmpb.Quote, error) {
	selection := tpm2.PCRSelection{Hash: tpm2.AlgSHA256, PCRs: slices.Clone(d.options.PCRs)}
	const tries = 5
	for i := 1; ; i++ {
		quoted, err := ak.Quote(selection, extra)
		if err == nil || i == tries {
			return quoted, err
		}
	}
}

// addEK fills in the endorsement key's part.
func (d *Device) addEK(e *evidence) error {
	ek, err := d.endorsementKey()
	if err != nil {
		return err
	}
	defer ek.Close()
	if e.EK, err = x509.MarshalPKIXPublicKey(ek.PublicKey()); err != nil {
		return err
	}
	// Without permission to read it, or without a certificate, the key comes alone.
	if certificate, err := tpm2.NVReadEx(d.rw, tpmutil.Handle(client.EKCertNVIndexRSA), tpm2.HandleOwner, "", 0); err == nil {
		e.Chain = append(e.Chain, certificateOnly(certificate))
		for _, c := range d.options.Chain {
			e.Chain = append(e.Chain, c.Raw)
		}
	}
	return nil
}

// certificateOnly cuts off the padding that some vendors store behind the certificate.
func certificateOnly(der []byte) []byte {
	if len(der) > 4 && der[0] == 0x30 && der[1] == 0x82 {
		if n := 4 + int(der[2])<<8 + int(der[3]); n <= len(der) {
			return der[:n]
		}
	}
	return der
}

// endorsementKey loads the RSA 2048 EK of TCG's default template. If the machine's owner keeps it at the reserved
// handle, it need not be made again.
func (d *Device) endorsementKey() (*client.Key, error) {
	if d.hasEK() {
		session, err := client.NewEKSession(d.rw)
		if err != nil {
			return nil, fmt.Errorf("loading the endorsement key: %w", err)
		}
		return client.LoadCachedKey(d.rw, client.EKReservedHandle, session)
	}
	ek, err := d.primary(tpm2.HandleEndorsement, client.DefaultEKTemplateRSA())
	if err != nil {
		return nil, fmt.Errorf("making the endorsement key: %w", err)
	}
	return ek, nil
}

// primary makes the primary key of a hierarchy, or loads it as the TPM has saved it: a TPM takes seconds to make an RSA
// key. What it saves is encrypted to itself and counts until it is reset.
func (d *Device) primary(hierarchy tpmutil.Handle, template tpm2.Public) (*client.Key, error) {
	if saved, ok := d.kept[hierarchy]; ok {
		if key, err := d.load(hierarchy, saved); err == nil {
			return key, nil
		}
		delete(d.kept, hierarchy)
	}
	key, err := client.NewKey(d.rw, hierarchy, template)
	if err != nil {
		return nil, err
	}
	if saved, err := tpm2.ContextSave(d.rw, key.Handle()); err == nil { // else it is made again
		if d.kept == nil {
			d.kept = map[tpmutil.Handle][]byte{}
		}
		d.kept[hierarchy] = saved
	}
	return key, nil
}

func (d *Device) load(hierarchy tpmutil.Handle, saved []byte) (*client.Key, error) {
	handle, err := tpm2.ContextLoad(d.rw, saved)
	if err != nil {
		return nil, err
	}
	var session client.Session = client.NullSession{}
	if hierarchy == tpm2.HandleEndorsement {
		session, err = client.NewEKSession(d.rw)
	}
	var key *client.Key
	if err == nil {
		key, err = client.LoadCachedKey(d.rw, handle, session)
	}
	if err != nil {
		_ = tpm2.FlushContext(d.rw, handle)
	}
	return key, err
}

// Prepare makes the keys that evidence needs, so that no broker waits for them. The error's code is
// [attest.CodeAttester].
func (d *Device) Prepare(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []func() (*client.Key, error)
	if !d.options.EphemeralAK {
		keys = append(keys, func() (*client.Key, error) {
			ak, _, err := d.attestationKey(nil)
			return ak, err
		})
	}
	if d.options.EK {
		keys = append(keys, d.endorsementKey)
	}
	for _, load := range keys {
		err := ctx.Err()
		var key *client.Key
		if err == nil {
			key, err = load()
		}
		if err != nil {
			return attest.Errorf(attest.CodeAttester, "making the TPM's keys", "", "%w", err)
		}
		key.Close()
	}
	return nil
}

// HasEK reports whether the TPM keeps the RSA endorsement key at TCG's reserved handle, so that it need not be made after
// every boot.
func (d *Device) HasEK() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hasEK()
}

func (d *Device) hasEK() bool {
	public, _, _, err := tpm2.ReadPublic(d.rw, client.EKReservedHandle)
	return err == nil && public.MatchesTemplate(client.DefaultEKTemplateRSA())
}

// KeepEK has the TPM keep the RSA endorsement key at TCG's reserved handle (0x81010001), by the owner's right, which
// must have no password. It overwrites nothing. The error's code is [attest.CodeAttester].
func (d *Device) KeepEK() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	const step = "keeping the endorsement key in the TPM"
	if d.hasEK() {
		return nil
	}
	if _, _, _, err := tpm2.ReadPublic(d.rw, client.EKReservedHandle); err == nil {
		return attest.Errorf(attest.CodeAttester, step, "See what it is: tpm2_readpublic -c 0x81010001.",
			"another key has the handle %#x", uint32(client.EKReservedHandle))
	}
	ek, err := d.endorsementKey()
	if err == nil {
		err = tpm2.EvictControl(d.rw, "", tpm2.HandleOwner, ek.Handle(), client.EKReservedHandle)
		ek.Close()
	}
	if err != nil {
		return attest.Errorf(attest.CodeAttester, step, "The owner hierarchy must have no password.", "%w", err)
	}
	return nil
}

// Measured is the value of a register that was zero and then measured this digest.
func Measured(digest [32]byte) [32]byte {
	return sha256.Sum256(append(make([]byte, 32), digest[:]...))
}

// Measure extends a register that still is zero by a digest, and leaves one that is not as it is, so that a program
// which starts again finds its own measurement. It returns the register's value.
func (d *Device) Measure(register int, digest [32]byte) (value [32]byte, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	const step = "measuring into the TPM"
	value, err = d.read(register)
	if err == nil && value == [32]byte{} {
		if err = tpm2.PCRExtend(d.rw, tpmutil.Handle(register), tpm2.AlgSHA256, digest[:], ""); err == nil {
			value, err = d.read(register)
		}
	}
	if err != nil {
		return value, attest.Errorf(attest.CodeAttester, step, "Has the TPM a bank of SHA-256?", "register %d: %w",
			register, err)
	}
	return value, nil
}

func (d *Device) read(register int) (value [32]byte, err error) {
	raw, err := tpm2.ReadPCR(d.rw, register, tpm2.AlgSHA256)
	if err == nil && len(raw) != len(value) {
		err = fmt.Errorf("it has %d bytes", len(raw))
	}
	copy(value[:], raw)
	return value, err
}
