// Command cluster proves the deployment on a real Kubernetes cluster, the one that kubectl's current context names: it
// builds simulated images, pushes them, applies the manifests, and checks what an operator and a client rely on, with
// attacks and failures among it. Every check is one line; the report is kept as a file.
//
// It needs kubectl, helm and the built programs (make build model), and a registry that both this machine and the nodes
// reach under one name. Everything it makes is in a namespace of its own, which it removes at the end; the NodePort
// 31001 must be free.
//
// Exit status: 0 if every check passed, 1 otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var e suite
	var limit time.Duration
	var keep bool
	flag.StringVar(&e.registry, "registry", "127.0.0.1:5001", "registry for the images, for this machine and the nodes")
	flag.StringVar(&e.namespace, "namespace", "sesame-e2e", "namespace to make, and to remove at the end")
	flag.StringVar(&e.bin, "bin", "bin", "directory of the built programs")
	flag.StringVar(&e.work, "work", "build/e2e-k8s", "directory of images, keys and the report")
	flag.StringVar(&e.nodeHost, "node", "", "address at which the NodePort is reached (default: of the first node)")
	flag.StringVar(&e.helm, "helm", "helm", "the helm command")
	flag.DurationVar(&limit, "limit", 15*time.Minute, "for everything")
	flag.BoolVar(&keep, "keep", false, "keep the namespace")
	flag.Parse()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var err error
	for _, dir := range []*string{&e.bin, &e.work} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(e.work, 0o755); err != nil {
		return err
	}
	if e.report, err = newReport(filepath.Join(e.work, "report.txt"), os.Stdout); err != nil {
		return err
	}
	defer func() { _ = e.report.close() }()
	e.begin(ctx)
	defer func() {
		e.stopForward()
		if keep {
			return
		}
		// A new context: the namespace goes even if the time is over.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		_, _ = e.kubectl(end, "", "delete", "namespace", e.namespace, "--ignore-not-found", "--wait=false")
	}()
	for _, c := range e.checks() {
		if !e.check(ctx, c) && c.essential {
			break
		}
	}
	if failed := e.report.finish(); failed > 0 {
		return fmt.Errorf("%d checks failed; the report is %s", failed, e.report.name)
	}
	return ctx.Err()
}

// check is one promise.
type check struct {
	promise string
	// essential ends the run if it fails: nothing after it could pass.
	essential bool
	run       func(context.Context) (detail string, err error)
}

// errSkipped is the reason why a check could not be made here; it counts as neither passed nor failed.
var errSkipped = errors.New("left out")

// check runs one check and writes its line.
func (e *suite) check(ctx context.Context, c check) bool {
	start := time.Now()
	detail, err := c.run(ctx)
	if err == nil {
		err = ctx.Err()
	}
	e.report.line(c.promise, detail, err, time.Since(start))
	if err != nil && !errors.Is(err, errSkipped) {
		e.report.diagnosis(e.diagnose(ctx))
		return false
	}
	return true
}
