package libos

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/occlumsim"
)

// sgxIoctlType is the type of the commands of /dev/sgx, the letter s.
const sgxIoctlType = 0x73

// quotePadding is how much larger the announced quote size is than a quote: a real one is padded, too.
const quotePadding = 64

// supplementalSize is that of Intel's sgx_ql_qv_supplemental_t, version 3.0; the simulator leaves it zero.
const supplementalSize = 528

// Results of quote verification (sgx_ql_qv_result_t).
const (
	resultOK               = 0
	resultInvalidSignature = 0xA004
	resultUnspecified      = 0xA006
)

// device is /dev/sgx of one enclave. Every failure is EINVAL, whatever the reason, except for an argument that
// cannot be read or written at all.
type device struct {
	platform string // directory of the machine
	body     sgx.ReportBody
	edmm     bool

	machine sync.Once
	loaded  *occlumsim.Machine
	loadErr error

	// The quote generator's first use decides for the enclave's life: a failure stays. failing makes it fail.
	failing      bool
	generator    sync.Once
	quoteSize    int
	generatorErr error
}

var errInvalid = errors.New("invalid argument")

// open loads the machine, once.
func (d *device) open() error {
	d.machine.Do(func() {
		d.loaded, d.loadErr = occlumsim.LoadMachine(d.platform)
	})
	return d.loadErr
}

// openGenerator does what the LibOS does once, when quotes are first asked for: find out how large they are.
func (d *device) openGenerator() error {
	d.generator.Do(func() {
		if d.failing {
			d.generatorErr = errors.New("the quoting service of the host is down, as it was asked to be")
			return
		}
		if d.generatorErr = d.open(); d.generatorErr != nil {
			return
		}
		quote, err := d.loaded.Platform.Quote(d.body)
		d.quoteSize, d.generatorErr = len(quote)+quotePadding, err
	})
	return d.generatorErr
}

// ioctl answers a command of a thread.
func (d *device) ioctl(pid int, command uint32, arg uint64) unix.Errno {
	if arg == 0 {
		return unix.EINVAL
	}
	var in [sgx.ReportSize]byte // the largest argument that is read
	size := int(command >> 16 & 0x3fff)
	if command>>30&1 != 0 { // the caller's data
		if size > len(in) {
			return unix.EINVAL
		}
		if err := readMemory(pid, arg, in[:size]); err != nil {
			return unix.EFAULT
		}
	}
	out, err := d.execute(pid, command, in[:min(size, len(in))])
	if err != nil {
		return unix.EINVAL
	}
	if err := writeMemory(pid, arg, out); err != nil {
		return unix.EFAULT
	}
	return 0
}

// execute returns what is written back to the argument.
func (d *device) execute(pid int, command uint32, in []byte) ([]byte, error) {
	pointer := func(i int) uint64 { return binary.LittleEndian.Uint64(in[8*i:]) }
	number := func(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
	switch command {
	case sgx.IoctlIsEDMMSupported:
		if d.edmm {
			return number(1), nil
		}
		return number(0), nil
	case sgx.IoctlSelfTarget:
		target := sgx.TargetInfo{MREnclave: d.body.MREnclave, Attributes: d.body.Attributes, XFRM: d.body.XFRM,
			ConfigSVN: d.body.ConfigSVN, MiscSelect: d.body.MiscSelect, ConfigID: d.body.ConfigID}
		return target.AppendBinary(nil)
	case sgx.IoctlCreateReport:
		return nil, d.createReport(pid, pointer(0), pointer(1), pointer(2))
	case sgx.IoctlVerifyReport:
		return nil, d.verifyReport(in)
	case sgx.IoctlDetectDCAPDriver:
		return number(1), nil
	case sgx.IoctlGetDCAPQuoteSize:
		if err := d.openGenerator(); err != nil {
			return nil, err
		}
		return number(uint32(d.quoteSize)), nil
	case sgx.IoctlGenDCAPQuote:
		return nil, d.quote(pid, pointer(0), pointer(1), pointer(2))
	case sgx.IoctlGetDCAPSupplementalSize:
		return number(supplementalSize), nil
	case sgx.IoctlVerDCAPQuote:
		return nil, d.verifyQuote(pid, in)
	case sgx.IoctlGetKey:
		return nil, d.key(pid, pointer(0), pointer(1))
	}
	return nil, errInvalid // EPID does not exist any more; other numbers and sizes never did
}

func (d *device) quote(pid int, dataAddr, sizeAddr, bufferAddr uint64) error {
	if err := d.openGenerator(); err != nil {
		return err
	}
	var size [4]byte
	body := d.body
	if err := readMemory(pid, sizeAddr, size[:]); err != nil {
		return err
	}
	if int(binary.LittleEndian.Uint32(size[:])) < d.quoteSize {
		return errInvalid
	}
	if err := readMemory(pid, dataAddr, body.ReportData[:]); err != nil {
		return err
	}
	quote, err := d.loaded.Platform.Quote(body)
	if err != nil || len(quote) > d.quoteSize {
		return errors.Join(err, errInvalid)
	}
	return writeMemory(pid, bufferAddr, append(quote, make([]byte, d.quoteSize-len(quote))...))
}

// reportMAC authenticates a report for an enclave with this measurement on this machine.
func (d *device) reportMAC(target [32]byte, r *sgx.Report) ([16]byte, error) {
	if err := d.open(); err != nil {
		return [16]byte{}, err
	}
	body, err := r.Body.AppendBinary(nil)
	if err != nil {
		return [16]byte{}, err
	}
	return d.derive("report", target[:], r.KeyID[:], body), nil
}

// derive is the processor's key derivation: everything in parts changes the result.
func (d *device) derive(label string, parts ...[]byte) [16]byte {
	h := hmac.New(sha256.New, d.loaded.DeviceKey[:])
	for _, part := range append([][]byte{[]byte(label)}, parts...) {
		_ = binary.Write(h, binary.LittleEndian, uint64(len(part)))
		h.Write(part)
	}
	return [16]byte(h.Sum(nil))
}

func (d *device) createReport(pid int, targetAddr, dataAddr, outAddr uint64) error {
	target := d.body.MREnclave
	if targetAddr != 0 {
		if err := readMemory(pid, targetAddr, target[:]); err != nil {
			return err
		}
	}
	report := sgx.Report{Body: d.body}
	if dataAddr != 0 {
		if err := readMemory(pid, dataAddr, report.Body.ReportData[:]); err != nil {
			return err
		}
	}
	_, _ = rand.Read(report.KeyID[:])
	var err error
	if report.MAC, err = d.reportMAC(target, &report); err != nil {
		return err
	}
	text, err := report.AppendBinary(nil)
	if err != nil {
		return err
	}
	return writeMemory(pid, outAddr, text)
}

func (d *device) verifyReport(in []byte) error {
	report, err := sgx.ParseReport(in)
	if err != nil {
		return err
	}
	mac, err := d.reportMAC(d.body.MREnclave, &report)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(mac[:], report.MAC[:]) != 1 {
		return errInvalid
	}
	return nil
}

// key is EGETKEY: what the policy names and the masks cover goes into the key.
func (d *device) key(pid int, requestAddr, outAddr uint64) error {
	if err := d.open(); err != nil {
		return err
	}
	text := make([]byte, sgx.KeyRequestSize)
	if err := readMemory(pid, requestAddr, text); err != nil {
		return err
	}
	r, err := sgx.ParseKeyRequest(text)
	if err != nil {
		return err
	}
	kss := sgx.KeyPolicyNoProductID | sgx.KeyPolicyConfigID | sgx.KeyPolicyFamilyID | sgx.KeyPolicyExtProdID
	switch {
	case r.SVN > d.body.SVN, r.ConfigSVN > d.body.ConfigSVN:
		return errInvalid
	case r.Policy&kss != 0 && d.body.Attributes&attest.AttributeKSS == 0:
		return errInvalid
	case r.Policy&^(kss|sgx.KeyPolicyMREnclave|sgx.KeyPolicyMRSigner) != 0:
		return errInvalid
	}
	flags := r.AttributeMask & d.body.Attributes
	xfrm := r.XFRMMask & d.body.XFRM
	parts := [][]byte{text[:8], r.CPUSVN[:], r.KeyID[:],
		binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, flags), xfrm),
		binary.LittleEndian.AppendUint32(nil, r.MiscMask&d.body.MiscSelect),
		binary.LittleEndian.AppendUint16(nil, r.ConfigSVN)}
	for _, p := range []struct {
		bit   uint16
		value []byte
	}{
		{sgx.KeyPolicyMREnclave, d.body.MREnclave[:]}, {sgx.KeyPolicyMRSigner, d.body.MRSigner[:]},
		{sgx.KeyPolicyConfigID, d.body.ConfigID[:]}, {sgx.KeyPolicyFamilyID, d.body.FamilyID[:]},
		{sgx.KeyPolicyExtProdID, d.body.ExtProdID[:]},
	} {
		if r.Policy&p.bit != 0 {
			parts = append(parts, p.value)
		}
	}
	if r.Policy&sgx.KeyPolicyNoProductID == 0 {
		parts = append(parts, binary.LittleEndian.AppendUint16(nil, d.body.ProductID))
	}
	key := d.derive("key", parts...)
	return writeMemory(pid, outAddr, key[:])
}

// maxQuote bounds a quote that is to be verified, in bytes.
const maxQuote = 64 << 10

// verifyQuote is what the host's quote verification library and Intel's QvE say.
func (d *device) verifyQuote(pid int, in []byte) error {
	if err := d.open(); err != nil {
		return err
	}
	le := binary.LittleEndian
	size := le.Uint32(in[8:])
	if size > maxQuote {
		return errInvalid
	}
	quote := make([]byte, size)
	if err := readMemory(pid, le.Uint64(in), quote); err != nil {
		return err
	}
	result, expired := d.judge(quote)
	if err := writeMemory(pid, le.Uint64(in[16:]), le.AppendUint32(nil, expired)); err != nil {
		return err
	}
	if err := writeMemory(pid, le.Uint64(in[24:]), le.AppendUint32(nil, result)); err != nil {
		return err
	}
	if supplemental := le.Uint64(in[40:]); supplemental != 0 {
		if le.Uint32(in[32:]) < supplementalSize {
			return errInvalid
		}
		return writeMemory(pid, supplemental, make([]byte, supplementalSize))
	}
	return nil
}

func (d *device) judge(quote []byte) (result, expired uint32) {
	platform := d.loaded.Platform
	verifier := dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{platform.RootCA()},
		Source: pccs.Stapled(platform.Collateral()), AllowTrailing: true})
	_, err := verifier.Verify(context.Background(), attest.Evidence{Type: attest.SGX, Raw: quote}, time.Now())
	switch {
	case err == nil:
		return resultOK, 0
	case attest.CodeOf(err) == attest.CodeCollateral:
		return resultUnspecified, 1
	}
	return resultInvalidSignature, 0
}
