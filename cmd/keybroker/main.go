// Command keybroker is the key broker: it releases secrets to enclaves that prove what they are.
//
//	keybroker [--collateral URL|DIR] [--log-level LEVEL] ADDRESS
//
// Started in a folder with Occlum's dynamic_config.json and secret_config.json it takes the place of Occlum's
// /bin/server: the same wire, the same line "Server listening on ADDRESS" on standard output once it answers, and
// it listens on exactly ADDRESS. Unlike /bin/server it fails closed: a config that it cannot read to the letter, or
// that demands less than a minimum of a peer, ends it before it listens. docs/broker.md is the manual.
//
// The host chooses the command line of a program in an enclave, so no option changes who is trusted or what a peer
// must be: that stands in the folder, which belongs into the measured image. The options, and PCCS_URL, only say
// where to find collateral, which is signed.
//
// Exit codes: 0 ended by SIGTERM or SIGINT, 1 refused or failed, 2 wrong usage.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/clock"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/broker"
)

// buildTime is the lower bound of the clock, in seconds since 1970. The linker sets it.
var buildTime = "0"

// quoteWindow is how long a session waits for others to share a quote with.
const quoteWindow = 2 * time.Millisecond

// device is where Occlum's LibOS makes quotes.
const device = "/dev/sgx"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := command{
		folder:       ".",
		openAttester: func() (attester, error) { return openDevice(device) },
		stdout:       os.Stdout, stderr: os.Stderr,
	}
	os.Exit(c.run(ctx, os.Args[1:], os.Getenv("PCCS_URL")))
}

// attester is an [attest.Attester] that holds a device.
type attester interface {
	attest.Attester
	io.Closer
}

func openDevice(path string) (attester, error) {
	d, err := sgx.OpenDevice(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, attest.Errorf(attest.CodeAttester, "opening "+path,
			"Start it in an enclave (occlum run /bin/server ADDRESS), or in the simulator for development.",
			"there is none, and GRPC-RATLS clients take no broker without evidence")
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// command is one run of the program.
type command struct {
	folder         string
	openAttester   func() (attester, error)
	stdout, stderr io.Writer

	collateral string
	logLevel   string
}

// run is main with a result.
func (c *command) run(ctx context.Context, args []string, pccsURL string) int {
	root := &cobra.Command{
		Use:           "keybroker ADDRESS",
		Short:         "Release secrets to enclaves that prove what they are",
		Example:       "  keybroker --collateral https://pccs:8081/sgx/certification/v4/ 0.0.0.0:5000",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.Flags().StringVar(&c.collateral, "collateral", pccsURL,
		"PCCS address, or a folder with collateral; the default is the environment's PCCS_URL")
	root.Flags().StringVar(&c.logLevel, "log-level", "info", "debug, info, warning or error")
	usage := func(err error) error {
		return &attest.Error{Code: attest.CodeUsage, Err: err, Hint: "See keybroker -h."}
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.Args = func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(1)(cmd, args); err != nil {
			return usage(err)
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, args []string) error { return c.serve(cmd.Context(), args[0]) }
	root.SetArgs(args)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(c.stderr, "keybroker: %v\n", err)
	if hint := attest.HintOf(err); hint != "" {
		fmt.Fprintf(c.stderr, "hint: %s\n", hint)
	}
	if attest.CodeOf(err) == attest.CodeUsage {
		return 2
	}
	return 1
}

func (c *command) serve(ctx context.Context, address string) error {
	log := logrus.New()
	log.SetOutput(c.stderr)
	level, err := logrus.ParseLevel(c.logLevel)
	if err != nil {
		return attest.Errorf(attest.CodeUsage, "reading --log-level", "", "%w", err)
	}
	log.SetLevel(level)
	host, err := clock.Built(time.Now, buildTime)
	if err != nil {
		return attest.Errorf(attest.CodeInternal, "reading the clock", "Build with make.", "%w", err)
	}
	now := host.Now
	folder, err := broker.ReadFolder(c.folder)
	if err != nil {
		return err
	}
	defer folder.Secrets.Wipe()
	source, err := c.source(folder.Roots, now, log)
	if err != nil {
		return err
	}
	if closer, ok := source.(interface{ Close() }); ok {
		defer closer.Close()
	}
	for _, root := range folder.Roots {
		log.Warnf("trusting %s instead of Intel's root, because %s says so: this is not for production",
			root.Subject, broker.RootCAFile)
	}
	verifier := dcap.NewVerifier(dcap.Config{Roots: folder.Roots, Source: source})
	attester, err := c.openAttester()
	if err != nil {
		return err
	}
	defer attester.Close()
	identity, err := ratls.NewIdentity(attester, ratls.Options{Now: now})
	if err != nil {
		return err
	}
	if err := checkSelf(ctx, identity, verifier, now, log); err != nil {
		return err
	}
	server, err := broker.New(broker.Config{
		Identity:  identity,
		Verifier:  verifier,
		Workloads: []broker.Workload{folder.Workload},
		Secrets:   folder.Secrets,
		Quoter: session.NewQuoter(session.QuoterOptions{
			Attester:   attester,
			Collateral: broker.Collateral(source, folder.Roots, now),
			Window:     quoteWindow,
		}),
		Now:    now,
		Logger: log,
	})
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return attest.Errorf(attest.CodeConfig, "listening on "+address,
			"Write HOST:PORT, and see whether another program has the port.", "%w", err)
	}
	log.WithField("secrets", folder.Secrets.Len()).
		Info("serving session v1, and the legacy wire GRPC-RATLS, which proves no freshness")
	fmt.Fprintf(c.stdout, "Server listening on %s\n", address)
	return server.Serve(ctx, listener)
}

// checkSelf makes the first certificate, without which there is nothing to serve, and verifies it as a client will.
// What a client would refuse is worth a warning now; collateral may still arrive later.
func checkSelf(ctx context.Context, identity *ratls.Identity, v attest.Verifier, now func() time.Time,
	log logrus.FieldLogger) error {
	certificate, err := identity.Certificate(ctx)
	if err != nil {
		return err
	}
	evidence, err := ratls.Evidence(certificate.Leaf.Raw)
	if err != nil {
		return attest.Errorf(attest.CodeAttester, "checking own evidence", "", "%w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, ratls.DefaultTimeout)
	defer cancel()
	claims, err := v.Verify(ctx, evidence, now())
	if err != nil {
		log.WithField("hint", attest.HintOf(err)).Warnf("clients will refuse this broker's own evidence: %v", err)
		return nil
	}
	fields := logrus.Fields{"tcb": claims.TCB.StatusName()}
	if c := claims.SGX; c != nil {
		fields["mr_enclave"] = fmt.Sprintf("%x", c.MREnclave)
		fields["mr_signer"] = fmt.Sprintf("%x", c.MRSigner)
		fields["product_id"], fields["svn"] = c.ProductID, c.SVN
		if c.Debug() {
			log.Warn("this is a debug enclave: the host reads its memory, secrets included")
		}
	}
	log.WithFields(fields).Info("own evidence is genuine")
	return nil
}

// source finds collateral. It is signed, so that a service without TLS can withhold it but not forge it.
func (c *command) source(roots []*x509.Certificate, now func() time.Time, log logrus.FieldLogger) (dcap.Source, error) {
	switch {
	case c.collateral == "":
		return nil, attest.Errorf(attest.CodeConfig, "finding collateral",
			"Set PCCS_URL, or give --collateral with a PCCS address or a folder.", "no source is named")
	case strings.HasPrefix(c.collateral, "http://"):
		log.Warn("collateral comes over http: who is on the way sees which platforms are asked for and can withhold it")
	case !strings.Contains(c.collateral, "://"):
		return pccs.Dir(c.collateral), nil
	}
	return pccs.New(pccs.Config{URL: c.collateral, AllowHTTP: true, Roots: roots, Now: now})
}
