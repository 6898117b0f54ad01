// Package sizing computes the limits of an enclave from what runs in it, and what of them a cluster must know: the
// EPC that a pod asks for, and the number of processors that keeps its threads below the enclave's limit.
//
// Every number comes with the sum that it is, so that who knows better can change a term. The terms are estimates for
// TensorFlow Serving and for Go programs; the ones of memory were chosen to hold the reference deployment (ResNet-50
// within 7000 MB) with room.
package sizing

import (
	"fmt"

	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

const mib occlumconf.Size = 1 << 20

// What the terms are made of.
const (
	// goReserve is the address space that a Go program, such as init, reserves before its first line.
	goReserve = 1536 * mib
	// runtimeHeap is what an inference server needs beside its model.
	runtimeHeap = 1024 * mib
	// stackOfThread is the stack that a C library maps for a thread.
	stackOfThread = 8 * mib
	// modelCopies is how often a model's bytes are in memory while it loads: read, parsed, and as tensors twice.
	modelCopies = 4
	// libosHeap is the LibOS's own heap, beside the program that it loads from there.
	libosHeap = 32 * mib
	// libosImage is the LibOS's code and data, and the SDK's regions.
	libosImage = 128 * mib
	// threadPages are control structure and state save areas of one thread.
	threadPages = 64 << 10

	// baseThreads is what init, the server's own services and gRPC need whatever the number of processors.
	baseThreads = 32
	// threadsPerCPU is what the server's pools (within an operation, between operations, gRPC's, batching) make for
	// each processor that they see.
	threadsPerCPU = 8
)

// Input is what runs in an enclave.
type Input struct {
	Program int64 // bytes of the largest program with its loader
	Files   int64 // bytes of all programs and libraries
	Model   int64 // bytes of the model, 0 for a program without one
	CPUs    int   // processors that the application may use
}

// Limits is what an enclave and its pod get.
type Limits struct {
	UserSpace, KernelHeap occlumconf.Size
	Threads               uint32
	Explanation           []string // one line for each number
}

// For computes limits. A kernel heap or a number of threads must be enough; user space is memory that the EPC must
// hold, so it is not rounded up further than to 64 MB.
func For(in Input) Limits {
	threads := uint32(baseThreads + threadsPerCPU*in.CPUs)
	stacks := occlumconf.Size(threads) * stackOfThread
	files, model := occlumconf.Size(in.Files), occlumconf.Size(in.Model)
	sum := runtimeHeap + files + modelCopies*model + stacks
	user := roundUp(max(sum, goReserve), 64*mib)
	heap := roundUp(libosHeap+2*occlumconf.Size(in.Program), 16*mib)
	return Limits{
		UserSpace: user, KernelHeap: heap, Threads: threads,
		Explanation: []string{
			fmt.Sprintf("user_space_size %v: 1GB for the server + %s of programs + %d × %s of model + %d stacks of 8MB; "+
				"1536MB at least, which a Go program reserves", user, megabytes(files), modelCopies, megabytes(model), threads),
			fmt.Sprintf("kernel_space_heap_size %v: 32MB for the LibOS + 2 × %s of the largest program, which it loads from "+
				"there", heap, megabytes(occlumconf.Size(in.Program))),
			fmt.Sprintf("max_num_of_threads %d: %d + %d for each of %d processors", threads, baseThreads, threadsPerCPU,
				in.CPUs),
		},
	}
}

// CPUs is how many processors an application may see whose enclave has this many threads; 1 at least. It is the
// number for "sesame pod run --cpus", in the place of taskset.
func CPUs(threads uint32) int {
	if threads < baseThreads+threadsPerCPU {
		return 1
	}
	return int(threads-baseThreads) / threadsPerCPU
}

// EPC is the enclave memory that one pod asks for: all that the enclave may grow to, rounded up to 100 MiB.
func EPC(c *occlumconf.Config) (size occlumconf.Size, explanation string) {
	threads := occlumconf.Size(c.Threads())
	perThread := c.ResourceLimits.KernelStack + threadPages
	size = roundUp(c.UserSpace()+c.KernelHeap()+threads*perThread+libosImage, 100*mib)
	return size, fmt.Sprintf("sgx.intel.com/epc %s: user space %v + kernel heap %v + %d threads × %s + %v for the LibOS",
		Quantity(size), c.UserSpace(), c.KernelHeap(), threads, megabytes(perThread), libosImage)
}

// Quantity writes a size as Kubernetes does: "2400Mi".
func Quantity(s occlumconf.Size) string { return fmt.Sprintf("%dMi", (s+mib-1)/mib) }

// megabytes is a size to be read, not parsed.
func megabytes(s occlumconf.Size) string { return fmt.Sprintf("%.1f MB", float64(s)/float64(mib)) }

func roundUp(s, step occlumconf.Size) occlumconf.Size { return (s + step - 1) / step * step }
