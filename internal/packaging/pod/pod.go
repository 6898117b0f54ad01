// Package pod is what the containers of a deployment do around "occlum run": stage writable copies, keep threads
// within the enclave's limit, tell the host's quote library the address of collateral, and ask a server for its health.
//
// All of it runs outside of the enclave, on the host's side, so nothing here is trusted or needs to be: a host that
// leaves it out gets an enclave that does not start, and nothing else.
package pod

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/packaging/copytree"
)

// Stage copies a directory of the image to a place that only this pod writes to. Occlum opens its volumes for writing
// and locks them, so that two pods cannot share one. dst may exist, as it does if the pod's init containers run again after
// its node was started anew; what is in it stays, except files of the same name.
func Stage(src, dst string) error {
	if err := copytree.Copy(src, dst); err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	return nil
}

// LimitCPUs lets this process, and what it executes, run on at most n of the processors that it may use now. A
// program that makes threads by the number of processors then stays below the enclave's limit of threads, as with
// taskset, but whatever the numbers of the processors are.
//
// The limit is the calling thread's, to which it binds the goroutine: [Exec] hands it on.
func LimitCPUs(n int) error {
	runtime.LockOSThread()
	var have unix.CPUSet
	if err := unix.SchedGetaffinity(0, &have); err != nil {
		return fmt.Errorf("reading the processors of this process: %w", err)
	}
	var want unix.CPUSet
	for cpu, left := 0, n; cpu < len(have)*64 && left > 0; cpu++ {
		if have.IsSet(cpu) {
			want.Set(cpu)
			left--
		}
	}
	if err := unix.SchedSetaffinity(0, &want); err != nil {
		return fmt.Errorf("limiting this process to %d processors: %w", n, err)
	}
	return nil
}

// WriteQCNL writes the config of Intel's quote provider library, which the host-side half of a quote needs: which
// PCCS to ask. The collateral that comes from it is signed.
func WriteQCNL(file, pccsURL string) error {
	text, err := json.MarshalIndent(struct {
		PCCSURL       string `json:"pccs_url"`
		UseSecureCert bool   `json:"use_secure_cert"`
		RetryTimes    int    `json:"retry_times"`
		RetryDelay    int    `json:"retry_delay"`
	}{pccsURL, true, 6, 10}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// Exec replaces this process by a program, which is looked for in PATH.
func Exec(args []string) error {
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return fmt.Errorf("executing %s: %w", program, syscall.Exec(program, args, os.Environ()))
}

// Probe asks the gRPC server at address whether it serves, by the gRPC health protocol over TLS. It is what a kubelet's
// own gRPC probe would do if it spoke TLS. It does not ask who answers, for nothing is sent that matters: a probe says
// that something is up, never that it is the right thing; clients find that out for themselves.
//
// A server without the health service that answers so (TensorFlow Serving, which listens only when its models are
// loaded) counts as serving.
func Probe(ctx context.Context, address string) error {
	const step = "probing "
	creds := credentials.NewTLS(&tls.Config{
		InsecureSkipVerify: true, // see above: liveness, not identity
		MinVersion:         tls.VersionTLS12, NextProtos: []string{"h2"},
	})
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		return attest.Errorf(attest.CodeUsage, step+address, "Write HOST:PORT.", "%w", err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return nil
	case err != nil:
		return attest.Errorf(attest.CodeUnreachable, step+address, "", "%s", strings.TrimSpace(status.Convert(err).Message()))
	case answer.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		return attest.Errorf(attest.CodeUnreachable, step+address, "", "it says %s", answer.GetStatus())
	}
	return nil
}
