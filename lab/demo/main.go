// Command demo runs the main job of Sesame from end to end on a plain Linux machine, on a software SGX platform:
//
//	a model is encrypted, an inference server and a key broker are packed into simulated Occlum instances, the
//	server's init attests to the broker, receives the keys, mounts the encrypted root and the encrypted model,
//	and starts an unmodified model server, which answers an inference request.
//
// The keys come from the service that -backend names, "grpc-ratls" for Sesame's own broker. Every step is one line
// with its time. With -tamper WORD one thing is changed from outside (a file is edited,
// another platform or another signer is used, other arguments are asked for) and the run must end in a refusal
// for the right reason, with no server started: exit status 1 if it does, 3 if it does not.
//
// With -platform linux the same happens outside of Occlum, on a machine with a software TPM.
//
// Everything it makes is in one temporary directory and is gone at the end; every server it starts listens
// on 127.0.0.1 and is stopped.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// tamperWords are the changes that the runs know.
const tamperWords = "config, model, quote, broker (other services: server, vault), key, argv"

// errRefused is the wanted end of a tampered run.
var errRefused = errors.New("refused as it must be")

func main() {
	tamper := flag.String("tamper", "", "change one thing: "+tamperWords)
	backend := flag.String("backend", "grpc-ratls", "the service that releases the keys: "+strings.Join(serviceWords(), ", "))
	platform := flag.String("platform", "occlum", "occlum, or linux: a machine with a software TPM; its tamperings are pcr and ak")
	bin := flag.String("bin", "bin", "directory of the built programs")
	model := flag.String("model", "build/model", "directory that makemodel wrote")
	wire := flag.String("wire", "session", "protocol between init and broker: session, or legacy as Occlum's own programs speak it")
	tls := flag.String("tls", "broker", "where the server's TLS key comes from: broker, or attested, made inside the enclave")
	keep := flag.Bool("keep", false, "keep the work directory and print its name")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, *platform, *backend, *tamper, *wire, *tls, *bin, *model, *keep)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, errRefused):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(3)
	}
}

func run(ctx context.Context, platform, backend, tamper, wire, tls, bin, model string, keep bool) (err error) {
	if tls != "broker" && tls != "attested" {
		return fmt.Errorf("unknown TLS %q, want broker or attested", tls)
	}
	d := &demo{wire: wire, attestedTLS: tls == "attested", start: time.Now()}
	if !d.choose(backend) {
		return fmt.Errorf("unknown BACKEND %q, want one of %s", backend, strings.Join(serviceWords(), ", "))
	}
	if platform != "occlum" && platform != "linux" {
		return fmt.Errorf("unknown PLATFORM %q, want occlum or linux", platform)
	}
	runs := d.tamperings()[tamper]
	if platform == "occlum" && tamper != "" && runs == nil {
		return fmt.Errorf("unknown TAMPER %q with BACKEND %s, want one of %s", tamper, backend,
			strings.Join(slices.Sorted(maps.Keys(d.tamperings())), ", "))
	}
	work, err := os.MkdirTemp("", "sesame-demo-")
	if err != nil {
		return err
	}
	d.work = work
	defer func() {
		d.stopAll()
		if keep {
			fmt.Println("kept: " + work)
			return
		}
		if removeErr := os.RemoveAll(work); removeErr != nil && (err == nil || errors.Is(err, errRefused)) {
			err = removeErr
		}
	}()
	if d.bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if d.model, err = filepath.Abs(model); err != nil {
		return err
	}
	if platform == "linux" {
		return runLinux(ctx, d, tamper)
	}
	return d.run(ctx, runs)
}

// run is the demo itself: the main job, or the tampered runs, which must be refused.
func (d *demo) run(ctx context.Context, runs []tampering) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if runs == nil {
		if err := d.serveAndPredict(ctx); err != nil {
			return err
		}
		d.stopAll()
		fmt.Printf("done in %.1f s\n", time.Since(d.start).Seconds())
		return nil
	}
	for _, t := range runs {
		if err := d.mustRefuse(ctx, t); err != nil {
			return err
		}
	}
	return errRefused
}
