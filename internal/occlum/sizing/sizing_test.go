package sizing

import (
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

func TestThreadsAndProcessorsAreEachOthersInverse(t *testing.T) {
	for cpus := 1; cpus <= 64; cpus++ {
		if got := CPUs(For(Input{CPUs: cpus}).Threads); got != cpus {
			t.Errorf("%d processors give threads for %d", cpus, got)
		}
	}
	if got := CPUs(64); got != 4 { // the reference: taskset -c 0-3 with 64 threads
		t.Errorf("64 threads allow %d processors, want 4", got)
	}
	for _, few := range []uint32{0, 1, 32, 39} {
		if got := CPUs(few); got != 1 {
			t.Errorf("%d threads allow %d processors, want 1", few, got)
		}
	}
}

func TestMoreContentNeverNeedsLess(t *testing.T) {
	small := For(Input{Program: 1 << 20, Files: 2 << 20, Model: 1 << 20, CPUs: 1})
	if small.UserSpace < 1536<<20 {
		t.Errorf("user space %v is less than a Go program reserves", small.UserSpace)
	}
	for name, in := range map[string]Input{
		"program": {Program: 200 << 20, Files: 2 << 20, Model: 1 << 20, CPUs: 1},
		"files":   {Program: 1 << 20, Files: 600 << 20, Model: 1 << 20, CPUs: 1},
		"model":   {Program: 1 << 20, Files: 2 << 20, Model: 300 << 20, CPUs: 1},
		"cpus":    {Program: 1 << 20, Files: 2 << 20, Model: 1 << 20, CPUs: 100},
	} {
		large := For(in)
		if large.UserSpace < small.UserSpace || large.KernelHeap < small.KernelHeap || large.Threads < small.Threads ||
			large.UserSpace == small.UserSpace && large.KernelHeap == small.KernelHeap && large.Threads == small.Threads {
			t.Errorf("more %s: %+v after %+v", name, large, small)
		}
	}
}

func TestEPCHoldsTheWholeEnclave(t *testing.T) {
	c := &occlumconf.Config{ResourceLimits: occlumconf.ResourceLimits{
		UserSpace: 7000 << 20, KernelHeap: 384 << 20, KernelStack: 1 << 20, MaxThreads: 64,
	}}
	size, why := EPC(c)
	if size < (7000+384+64)<<20 || size > 8000<<20 { // the reference asks for 8000Mi
		t.Errorf("EPC %s", Quantity(size))
	}
	if !strings.Contains(why, Quantity(size)) {
		t.Errorf("the explanation %q does not name %s", why, Quantity(size))
	}
}
