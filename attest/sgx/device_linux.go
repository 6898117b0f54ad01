package sgx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/fault"
)

// DefaultDevice is the SGX device of Occlum's LibOS.
const DefaultDevice = "/dev/sgx"

// Device is the SGX device of Occlum's LibOS: own report, quotes and keys of the enclave that this process runs
// in. It is an [attest.Attester] and safe for concurrent use.
//
// Whatever goes wrong inside the device, the LibOS says EINVAL. Hints of the errors therefore name the likely
// causes instead of the one.
type Device struct {
	file *os.File
	// call is the ioctl; arg points to the request's argument.
	call func(request uint32, arg unsafe.Pointer) error
}

// OpenDevice opens the device at path, usually [DefaultDevice].
func OpenDevice(path string) (*Device, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, attest.Errorf(attest.CodeAttester, "opening SGX device",
			"The device exists only inside an enclave of Occlum's LibOS (or its simulator).",
			"%w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	d := &Device{file: os.NewFile(uintptr(fd), path)}
	d.call = d.ioctl
	return d, nil
}

// Close closes the device. Calls that are under way end first.
func (d *Device) Close() error { return d.file.Close() }

// Type implements [attest.Attester].
func (*Device) Type() attest.EvidenceType { return attest.SGX }

func (d *Device) ioctl(request uint32, arg unsafe.Pointer) error {
	conn, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(arg))
			if errno != unix.EINTR {
				return
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

const (
	hintNoDevice = "The file is not the SGX device of Occlum's LibOS."
	hintQuote    = "The LibOS hides the reason. Likely the host's AESM service is down, its PCCS cannot be reached, or the " +
		"platform has no PCK certificate. The first failure sticks for the life of the enclave: repair the host, then " +
		"restart the enclave."
	hintEnclave = "The LibOS hides the reason. The processor refuses requests that the enclave's attributes or versions " +
		"do not allow."
)

// refuse says that a request failed and what may have caused it.
func refuse(step string, err error, hint string) error {
	if errors.Is(err, unix.ENOTTY) {
		hint = hintNoDevice
	}
	return attest.Errorf(attest.CodeAttester, step, hint, "SGX device: %w", err)
}

// quoteArgs, reportArgs and keyArgs are the arguments that hold addresses. The LibOS follows them without
// checking, so everything they point to is pinned during the call.
type (
	quoteArgs struct {
		reportData *attest.ReportData
		size       *uint32
		quote      *byte
	}
	reportArgs struct {
		target     *[TargetInfoSize]byte
		reportData *attest.ReportData
		report     *[ReportSize]byte
	}
	keyArgs struct {
		request *[KeyRequestSize]byte
		key     *[KeySize]byte
	}
)

// Evidence implements [attest.Attester]: a DCAP quote that binds data, without the padding that the LibOS puts
// behind it. If ctx ends first, the call goes on in the background and its result is dropped, since the
// device cannot be interrupted.
func (d *Device) Evidence(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	type result struct {
		quote []byte
		err   error
	}
	const step = "making quote"
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step, "", "%w", err)
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.err = fault.Try(func() (err error) { r.quote, err = d.quote(data); return err })
		done <- r
	}()
	select {
	case r := <-done:
		if err := fault.Raise(r.err); err != nil {
			return attest.Evidence{}, refuse(step, err, hintQuote)
		}
		return attest.Evidence{Type: attest.SGX, Raw: r.quote}, nil
	case <-ctx.Done():
		return attest.Evidence{}, attest.Errorf(attest.CodeAttester, step,
			"The host's AESM service or its PCCS hangs.", "SGX device: %w", ctx.Err())
	}
}

func (d *Device) quote(data attest.ReportData) ([]byte, error) {
	size := new(uint32)
	if err := d.pinned(IoctlGetDCAPQuoteSize, unsafe.Pointer(size)); err != nil {
		return nil, fmt.Errorf("asking for the quote's size: %w", err)
	}
	if *size < HeaderSize+ReportBodySize || *size > MaxQuoteSize {
		return nil, fmt.Errorf("the driver reports a quote of %d bytes", *size)
	}
	buffer := make([]byte, *size)
	args := &quoteArgs{reportData: &data, size: size, quote: &buffer[0]}
	if err := d.pinned(IoctlGenDCAPQuote, unsafe.Pointer(args), args.reportData, args.size, args.quote); err != nil {
		return nil, err
	}
	q, err := ParseQuote(buffer)
	if err != nil {
		return nil, fmt.Errorf("the host's quote is malformed: %w", err)
	}
	if q.SGX == nil || q.SGX.ReportData != data {
		return nil, errors.New("the host's quote is not about the report that was made")
	}
	return buffer[:len(buffer)-len(q.Trailing)], nil
}

// SelfTarget is the target info of the enclave itself, the cheapest way to learn its own measurement,
// attributes and config id.
func (d *Device) SelfTarget() (TargetInfo, error) {
	raw := new([TargetInfoSize]byte)
	if err := d.pinned(IoctlSelfTarget, unsafe.Pointer(raw)); err != nil {
		return TargetInfo{}, refuse("reading own target info", err, hintEnclave)
	}
	return ParseTargetInfo(raw[:])
}

// CreateReport makes a report of this enclave that binds data and that only target can check.
func (d *Device) CreateReport(target TargetInfo, data attest.ReportData) (Report, error) {
	raw, err := target.AppendBinary(nil)
	if err != nil {
		return Report{}, err
	}
	args := &reportArgs{target: (*[TargetInfoSize]byte)(raw), reportData: &data, report: new([ReportSize]byte)}
	if err := d.pinned(IoctlCreateReport, unsafe.Pointer(args), args.target, args.reportData, args.report); err != nil {
		return Report{}, refuse("making report", err, hintEnclave)
	}
	return ParseReport(args.report[:])
}

// Key is the key that the processor derives for this enclave and r. The caller wipes it.
func (d *Device) Key(r KeyRequest) ([KeySize]byte, error) {
	raw, err := r.AppendBinary(nil)
	if err != nil {
		return [KeySize]byte{}, err
	}
	args := &keyArgs{request: (*[KeyRequestSize]byte)(raw), key: new([KeySize]byte)}
	defer clear(args.key[:])
	if err := d.pinned(IoctlGetKey, unsafe.Pointer(args), args.request, args.key); err != nil {
		return [KeySize]byte{}, refuse("deriving sealing key", err, hintEnclave)
	}
	return *args.key, nil
}

// pinned makes a call with arg, and what the addresses in arg point to, pinned.
func (d *Device) pinned(request uint32, arg unsafe.Pointer, targets ...any) error {
	var p runtime.Pinner
	defer p.Unpin()
	p.Pin(arg)
	for _, t := range targets {
		p.Pin(t)
	}
	return d.call(request, arg)
}
