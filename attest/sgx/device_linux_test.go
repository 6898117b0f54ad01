package sgx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
)

func TestIoctlNumbersFollowFromTheirArguments(t *testing.T) {
	const read, write = 2, 1
	for _, c := range []struct {
		name      string
		got       uint32
		nr        uint32
		direction uint32
		size      uintptr
	}{
		{"IS_EDMM_SUPPORTED", IoctlIsEDMMSupported, 0, read, 4},
		{"GET_EPID_GROUP_ID", IoctlGetEPIDGroupID, 1, read, 4},
		{"GEN_EPID_QUOTE", IoctlGenEPIDQuote, 2, read | write, 128},
		{"SELF_TARGET", IoctlSelfTarget, 3, read, TargetInfoSize},
		{"CREATE_REPORT", IoctlCreateReport, 4, read | write, unsafe.Sizeof(reportArgs{})},
		{"VERIFY_REPORT", IoctlVerifyReport, 5, write, ReportSize},
		{"DETECT_DCAP_DRIVER", IoctlDetectDCAPDriver, 6, read, 4},
		{"GET_DCAP_QUOTE_SIZE", IoctlGetDCAPQuoteSize, 7, read, 4},
		{"GEN_DCAP_QUOTE", IoctlGenDCAPQuote, 8, read | write, unsafe.Sizeof(quoteArgs{})},
		{"GET_DCAP_SUPPLEMENTAL_SIZE", IoctlGetDCAPSupplementalSize, 9, read, 4},
		{"VER_DCAP_QUOTE", IoctlVerDCAPQuote, 10, read | write, 48},
		{"GET_KEY", IoctlGetKey, 11, read | write, unsafe.Sizeof(keyArgs{})},
	} {
		want := c.direction<<30 | uint32(c.size)<<16 | 's'<<8 | c.nr
		if c.got != want {
			t.Errorf("%s is %#x, want %#x", c.name, c.got, want)
		}
	}
}

// libOS answers ioctls as Occlum's LibOS does: padding behind the quote, one error for everything.
type libOS struct {
	quote   []byte
	size    uint32
	target  TargetInfo
	request KeyRequest
	fail    map[uint32]error
}

func (l *libOS) device() *Device { return &Device{call: l.call} }

func (l *libOS) call(request uint32, arg unsafe.Pointer) error {
	if err := l.fail[request]; err != nil {
		return err
	}
	switch request {
	case IoctlGetDCAPQuoteSize:
		*(*uint32)(arg) = l.size
	case IoctlGenDCAPQuote:
		a := (*quoteArgs)(arg)
		if *a.size < l.size {
			return unix.EINVAL
		}
		quote := unsafe.Slice(a.quote, *a.size)
		clear(quote)
		copy(quote, l.quote)
		copy(quote[HeaderSize+320:], a.reportData[:])
	case IoctlSelfTarget:
		raw, _ := l.target.AppendBinary(nil)
		copy((*[TargetInfoSize]byte)(arg)[:], raw)
	case IoctlCreateReport:
		a := (*reportArgs)(arg)
		target, err := ParseTargetInfo(a.target[:])
		if err != nil {
			return unix.EINVAL
		}
		report := Report{MAC: [16]byte(target.MREnclave[:16])}
		report.Body.ReportData = *a.reportData
		raw, _ := report.AppendBinary(nil)
		copy(a.report[:], raw)
	case IoctlGetKey:
		a := (*keyArgs)(arg)
		l.request, _ = ParseKeyRequest(a.request[:])
		*a.key = [KeySize]byte{1, 2, 3}
	default:
		return unix.EINVAL
	}
	return nil
}

func genuineQuote(t *testing.T) []byte {
	t.Helper()
	paths, err := filepath.Glob("../dcap/testdata/vectors/dcap-qvl/*_SGX3_*/quote.dat")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no quote: %v", err)
	}
	quote, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	return quote
}

func TestEvidenceIsTheQuoteWithoutPadding(t *testing.T) {
	quote := genuineQuote(t)
	data := attest.ReportData{1, 2, 63: 3}
	for _, padding := range []int{0, 1, 4096} {
		l := &libOS{quote: quote, size: uint32(len(quote) + padding)}
		evidence, err := l.device().Evidence(context.Background(), data)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(quote)
		copy(want[HeaderSize+320:], data[:])
		if evidence.Type != attest.SGX || !bytes.Equal(evidence.Raw, want) {
			t.Errorf("padding %d: got %d bytes, want the quote's %d", padding, len(evidence.Raw), len(want))
		}
	}
}

func TestQuoteFailureSaysWhatToDo(t *testing.T) {
	for _, request := range []uint32{IoctlGetDCAPQuoteSize, IoctlGenDCAPQuote} {
		l := &libOS{size: 5000, fail: map[uint32]error{request: unix.EINVAL}}
		_, err := l.device().Evidence(context.Background(), attest.ReportData{})
		if attest.CodeOf(err) != attest.CodeAttester || !errors.Is(err, unix.EINVAL) {
			t.Errorf("request %#x: %v", request, err)
		}
		for _, cause := range []string{"AESM", "PCCS", "PCK certificate", "restart the enclave"} {
			if !strings.Contains(attest.HintOf(err), cause) {
				t.Errorf("the hint %q does not say %q", attest.HintOf(err), cause)
			}
		}
	}
}

func TestHostsQuoteIsNotBelieved(t *testing.T) {
	quote := bytes.Repeat([]byte{3}, 5000)
	for name, l := range map[string]*libOS{
		"malformed": {quote: quote, size: 5000},
		"no size":   {quote: quote, size: 0},
		"too large": {quote: quote, size: 1 << 30},
	} {
		if _, err := l.device().Evidence(context.Background(), attest.ReportData{}); attest.CodeOf(err) != attest.CodeAttester {
			t.Errorf("%s: %v, want a refusal of class attester", name, err)
		}
	}
	l := &libOS{quote: genuineQuote(t), size: 8192}
	other := &Device{call: func(request uint32, arg unsafe.Pointer) error {
		if request == IoctlGenDCAPQuote {
			a := (*quoteArgs)(arg)
			foreign := attest.ReportData{0xff}
			return l.call(request, unsafe.Pointer(&quoteArgs{&foreign, a.size, a.quote}))
		}
		return l.call(request, arg)
	}}
	if _, err := other.Evidence(context.Background(), attest.ReportData{1}); err == nil {
		t.Error("a quote over another report was accepted")
	}
}

func TestAPanicWhileAQuoteIsMadeIsTheCallers(t *testing.T) {
	d := &Device{call: func(uint32, unsafe.Pointer) error { panic("it broke") }}
	defer func() {
		if cause := fmt.Sprint(recover()); !strings.Contains(cause, "it broke") {
			t.Errorf("it ended with %s", cause)
		}
	}()
	_, err := d.Evidence(t.Context(), attest.ReportData{})
	t.Errorf("it goes on, %v", err)
}

func TestEvidenceEndsWithItsContext(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	started := make(chan struct{})
	d := &Device{call: func(uint32, unsafe.Pointer) error {
		close(started)
		<-release
		return unix.EINVAL
	}}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-started
		cancel()
	}()
	if _, err := d.Evidence(ctx, attest.ReportData{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
}

func TestSelfTargetReportAndKeyReachTheProcessor(t *testing.T) {
	l := &libOS{target: TargetInfo{MREnclave: [32]byte{1, 31: 2}, Attributes: 5, XFRM: 7, ConfigSVN: 9, MiscSelect: 11,
		ConfigID: [64]byte{13, 63: 14}}}
	target, err := l.device().SelfTarget()
	if err != nil || target != l.target {
		t.Errorf("target info is %+v, %v; want %+v", target, err, l.target)
	}
	report, err := l.device().CreateReport(target, attest.ReportData{42})
	if err != nil || report.Body.ReportData != (attest.ReportData{42}) || report.MAC != [16]byte(target.MREnclave[:16]) {
		t.Errorf("report is %+v, %v", report, err)
	}
	request := KeyRequest{Name: KeyNameSeal, Policy: KeyPolicyMREnclave, SVN: 3, CPUSVN: [16]byte{4, 15: 5},
		AttributeMask: attest.AttributeInit | attest.AttributeDebug, XFRMMask: 6, KeyID: [32]byte{7, 31: 8}, MiscMask: 9,
		ConfigSVN: 10}
	key, err := l.device().Key(request)
	if err != nil || key != [KeySize]byte{1, 2, 3} || l.request != request {
		t.Errorf("key is %x, %v, for request %+v; want %+v", key, err, l.request, request)
	}
}

func TestAnotherFileIsNotTheDevice(t *testing.T) {
	if _, err := OpenDevice(t.TempDir() + "/sgx"); attest.CodeOf(err) != attest.CodeAttester {
		t.Errorf("missing device: %v", err)
	}
	d, err := OpenDevice(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.SelfTarget(); attest.HintOf(err) != hintNoDevice {
		t.Errorf("the null device: %v, hint %q", err, attest.HintOf(err))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.SelfTarget(); err == nil {
		t.Error("a closed device answered")
	}
}

func TestStructuresOfWrongSizeAreRefused(t *testing.T) {
	long := make([]byte, 1024)
	for n := range len(long) {
		if _, err := ParseTargetInfo(long[:n]); (err == nil) != (n == TargetInfoSize) {
			t.Errorf("target info of %d bytes: %v", n, err)
		}
		if _, err := ParseReport(long[:n]); (err == nil) != (n == ReportSize) {
			t.Errorf("report of %d bytes: %v", n, err)
		}
		if _, err := ParseKeyRequest(long[:n]); (err == nil) != (n == KeyRequestSize) {
			t.Errorf("key request of %d bytes: %v", n, err)
		}
	}
}

func TestStructuresSurviveTheirLayout(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		raw := make([]byte, KeyRequestSize)
		for i := range raw[:78] {
			raw[i] = byte(random.Uint32())
		}
		copy(raw[6:8], []byte{0, 0}) // reserved
		r, err := ParseKeyRequest(raw)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := r.AppendBinary(nil); !bytes.Equal(again, raw) {
			t.Fatalf("key request %x became %x", raw, again)
		}
	}
}
