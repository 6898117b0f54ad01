package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/clock"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func (c *command) logger() (*logrus.Logger, error) {
	log := logrus.New()
	log.SetOutput(c.stderr)
	level, err := logrus.ParseLevel(c.logLevel)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUsage, "reading --log-level", "", "%w", err)
	}
	log.SetLevel(level)
	switch c.logFormat {
	case "text":
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{})
	default:
		return nil, attest.Errorf(attest.CodeUsage, "reading --log-format", "", "%q is neither text nor json", c.logFormat)
	}
	return log, nil
}

// begun is what the broker starts with.
type begun struct {
	policy  *policy.Policy
	from    string // where the policy comes from
	file    string // policy to follow; "" where none is followed
	secrets map[string]attest.Secret
}

// private is the rule for files with keys and secrets, and for the store's. In an enclave rights say nothing: files of the
// image have those that packaging wrote, and are measured; those of the host's file system are what the host says.
func (c *command) private(warn func(...any)) privatefile.Rule {
	return privatefile.Rule{Unchecked: c.place.enclave, Remark: func(remark string) { warn(remark) }}
}

// begin reads policy and secrets.
func (c *command) begin(log logrus.FieldLogger) (*begun, error) {
	file := c.policyFile
	if file == "" {
		file = filepath.Join(c.folder, policyName)
		if _, err := os.Stat(file); err != nil {
			folder, err := broker.ReadFolder(c.folder, c.private(log.Warn))
			if err != nil {
				return nil, err
			}
			if c.collateral == "" { // a policy file that needs a source names one
				folder.Wipe()
				return nil, attest.Errorf(attest.CodeConfig, "finding collateral",
					"Set PCCS_URL, or give --collateral with a PCCS address or a folder.", "no source is named")
			}
			return &begun{policy: folder.Policy, from: "Occlum's files", secrets: folder.Secrets}, nil
		}
	}
	text, err := readPolicyFile(file)
	if err != nil {
		return nil, err
	}
	b := &begun{from: "file " + file}
	if b.policy, err = policy.Parse(text); err != nil {
		return nil, err
	}
	if !c.place.enclave {
		b.file = file
	}
	b.secrets, err = c.fixedSecrets(c.private(log.Warn))
	return b, err
}

// warnOfImage says that secrets come from the image of an enclave.
func (c *command) warnOfImage(first *begun, log logrus.FieldLogger) {
	if c.place.enclave && len(first.secrets) > 0 {
		log.WithFields(logrus.Fields{"secrets": len(first.secrets), "hint": "Name a store in policy.yaml, put new secrets into it with " +
			"\"sesame secret put\", and build without " + broker.SecretsFile + "."}).
			Warn("secrets of this broker are in its image, which is measured but not encrypted: the host can read them")
	}
}

// warnOfSwap says that memory may be swapped out. An enclave's is encrypted wherever it is.
func (c *command) warnOfSwap(log logrus.FieldLogger) {
	if c.swapped != nil && !c.place.enclave {
		log.WithField("hint", "Grant CAP_IPC_LOCK, or let it lock all (LimitMEMLOCK=infinity in a unit, --ulimit memlock=-1 for a "+
			"container), or turn swap off.").Warnf("this broker's secrets may be written to swap space: %v", c.swapped)
	}
}

func (c *command) serve(ctx context.Context, address string) error {
	log, err := c.logger()
	if err != nil {
		return err
	}
	built, err := clock.Built(time.Now, buildTime)
	if err != nil {
		return attest.Errorf(attest.CodeInternal, "reading the clock", "Build with make.", "%w", err)
	}
	host := &timekeeper{Bounded: built}
	first, err := c.begin(log)
	if err != nil {
		return err
	}
	c.warnOfImage(first, log)
	c.warnOfSwap(log)
	keyFile := c.keyFile
	if !filepath.IsAbs(keyFile) {
		keyFile = filepath.Join(c.folder, keyFile)
	}
	identity, own, err := c.place.identity(keyFile, c.private(log.Warn), host.Now, log)
	if err != nil {
		return err
	}
	if own != nil {
		defer own.Close()
	}
	metrics := broker.NewMetrics()
	keys, closeKeeper, err := c.keeper(ctx, first, own, host.Now, metrics, log)
	if err != nil {
		return err
	}
	defer closeKeeper()
	host.keys = keys
	late := &latePolicies{}
	if own != nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard) // it is said when the policies are opened
		early, err := c.trust(first.policy.Trust, host, silent)
		if err != nil {
			return err
		}
		defer early.Close()
		late.first = func(ctx context.Context, own attest.Evidence) (*dcap.Collateral, error) {
			return early.Collateral(ctx, own, host.Now())
		}
	}
	config := broker.Config{Identity: identity, Keeper: keys, Now: host.Now, Metrics: metrics, Logger: log}
	if own != nil {
		quotes := first.policy.Broker.Quotes
		config.Quoter = session.NewQuoter(session.QuoterOptions{
			Attester: own, Collateral: late.collateral, Window: time.Duration(*quotes.Window), Size: quotes.Size,
		})
	}
	health, stopHealth, err := c.operate(ctx, broker.Starting(keys, config.Metrics), log)
	if err != nil {
		return err
	}
	defer stopHealth()
	background, stop := context.WithCancel(ctx)
	waitAdmin, waitWitness := func() {}, func() {}
	defer func() {
		stop()
		waitWitness()
		waitAdmin()
	}()
	wait, err := c.administer(background, first.policy.Broker.Admin, keys, late, identity,
		session.BrokerConfig{Quoter: config.Quoter}, host.Now, log)
	if err != nil {
		return err
	}
	waitAdmin = wait
	if err := c.unlocked(background, keys, first, own, host, log); err != nil {
		return nil // it was stopped while it was locked
	}
	if wait, err = witness(background, first.policy.Broker.Witnesses, keys, log); err != nil {
		return err
	}
	waitWitness = wait
	if !witnessed(background, keys, log) {
		return nil // it was stopped before the witnesses have taken the log
	}
	if err := host.recall(ctx); err != nil {
		return err
	}
	if first.policy.Broker.Store != (policy.StoreAt{}) { // the key of a log in memory is another one at every start
		key, err := keys.LogKey()
		if err != nil {
			return err
		}
		log.Infof("clients check receipts of the release log by \"log_key\": %q", key)
	}
	if err := c.newest(ctx, first, keys, log); err != nil {
		return err
	}
	if config.Policies, err = c.policies(ctx, first, keys, host, config.Metrics, log); err != nil {
		return err
	}
	defer func() { config.Policies.Trust().Close() }()
	defer stopHealth() // which looks at the policies
	late.now.Store(config.Policies)
	if own != nil {
		if err := checkSelf(ctx, identity, config.Policies.Trust(), host.Now, log); err != nil {
			return err
		}
	}
	server, err := broker.New(config)
	if err != nil {
		return err
	}
	listener, err := listenOn(ctx, address)
	if err != nil {
		return err
	}
	health.become(server.Handler())
	beside := []func(context.Context){func(ctx context.Context) { c.follow(ctx, first, config.Policies, log) }}
	if c.place.enclave { // other replicas push policies, too
		beside = append(beside, func(ctx context.Context) {
			keys.Follow(ctx, func(ctx context.Context, text []byte) error {
				return config.Policies.Follow(ctx, text, "the store")
			})
		})
	}
	c.warnOfImage(first, log) // among the last lines of a start, too, where operators look
	return c.answer(ctx, address, listener, server, beside, log, config.Policies)
}

// policyKey is the key that a policy pins for later ones, nil if it pins none.
func policyKey(p *policy.Policy) (note.Verifier, error) {
	if p.Broker.PolicyKey == "" {
		return nil, nil
	}
	key, err := note.NewVerifier(p.Broker.PolicyKey)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "reading policy_key", "", "%w", err)
	}
	return key, nil
}

// answer serves on a listener, for address, until ctx ends. What is in beside runs meanwhile.
func (c *command) answer(ctx context.Context, address string, listener net.Listener, server *broker.Server,
	beside []func(context.Context), log *logrus.Logger, policies *broker.Policies) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	following, stop := context.WithCancel(ctx)
	defer stop()
	for _, run := range beside {
		wg.Go(fault.Guard(func() { run(following) }))
	}
	p := policies.Current()
	log.WithFields(logrus.Fields{"policy": p.Version, "workloads": len(p.Workloads), "place": c.place.name}).
		Info("serving session v1")
	if p.Legacy() {
		log.Warn("serving the legacy wire GRPC-RATLS, too, which proves no freshness")
	}
	fmt.Fprintf(c.stdout, "Server listening on %s\n", reached(address, listener))
	notify(daemon.SdNotifyReady)
	fault.Go(func() {
		<-ctx.Done()
		notify(daemon.SdNotifyStopping)
	})
	return server.Serve(ctx, listener)
}

// reached is an address as it was written, with the port that the system has chosen if it was written as 0.
func reached(address string, l net.Listener) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port != "0" {
		return address
	}
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(host, port)
}

// handling is a handler that becomes another one while it serves.
type handling struct{ now atomic.Pointer[http.Handler] }

func (h *handling) become(next http.Handler) { h.now.Store(&next) }

// ServeHTTP implements [http.Handler]. A panic ends the broker, where net/http would go on.
func (h *handling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer fault.Exit()
	(*h.now.Load()).ServeHTTP(w, r)
}

// operate serves health and metrics on the port of --http, if there is one, until stop is called: also while the broker
// is locked, so that an orchestrator that restarts what does not answer does not restart it then.
func (c *command) operate(ctx context.Context, first http.Handler, log *logrus.Logger) (h *handling, stop func(), err error) {
	h = &handling{}
	h.become(first)
	if c.http == "" {
		return h, func() {}, nil
	}
	listener, err := listenOn(ctx, c.http)
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	log.Infof("health and metrics are served on %s", listener.Addr())
	ended := make(chan struct{})
	fault.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Errorf("serving HTTP: %v", err)
		}
		close(ended)
	})
	return h, func() {
		_ = server.Close()
		<-ended
	}, nil
}

func listenOn(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "listening on "+address,
			"Write HOST:PORT, and see whether another program has the port.", "%w", err)
	}
	return l, nil
}

// policies puts the first policy in force.
func (c *command) policies(ctx context.Context, first *begun, keeper broker.Keeper, clock *timekeeper,
	metrics *broker.Metrics, log *logrus.Logger) (*broker.Policies, error) {
	config := broker.PoliciesConfig{
		Trust:  func(t policy.Trust) (*broker.Trust, error) { return c.trust(t, clock, log) },
		Keeper: keeper, Pinned: c.place.enclave, Now: clock.Now, Metrics: metrics, Logger: log,
	}
	key, err := policyKey(first.policy)
	if err != nil {
		return nil, err
	}
	if key != nil {
		config.Key = key
	}
	return broker.NewPolicies(ctx, config, first.policy, first.from)
}

// follow keeps the policy up to date until ctx ends.
func (c *command) follow(ctx context.Context, first *begun, policies *broker.Policies, log *logrus.Logger) {
	f := broker.Follower{Now: c.hangup, Ticks: c.ticks, Reloading: reloading, Logger: log}
	var begin []byte
	switch {
	case c.signedPolicy != "":
		f.Read = func() ([]byte, error) { return readPolicyFile(c.signedPolicy) }
		f.Replace = policies.ReplaceSigned
		begin, _ = f.Read() // which newest has seen
	case first.file != "":
		begin = first.policy.Text()
		f.Read = func() ([]byte, error) { return readPolicyFile(first.file) }
		f.Replace = func(ctx context.Context, text []byte) error {
			if bytes.Equal(text, policies.Current().Text()) {
				log.Info("the policy is as it was")
				return nil
			}
			return policies.Replace(ctx, text, "file "+first.file)
		}
	default:
		f.Read = func() ([]byte, error) { return nil, nil }
		f.Replace = func(context.Context, []byte) error { return nil }
	}
	f.Run(ctx, begin)
}

// trust makes what verifies evidence. Collateral is signed, so that a source that the host names can withhold it but not
// forge it.
func (c *command) trust(t policy.Trust, clock *timekeeper, log *logrus.Logger) (*broker.Trust, error) {
	if c.collateral != "" {
		t.Collateral = policy.CollateralAt(c.collateral)
	}
	verifies, err := broker.NewTrust(t, clock.Now, clock.vouched)
	if err != nil {
		return nil, err
	}
	for _, line := range verifies.Remarks() {
		log.Warn(line)
	}
	return verifies, nil
}

// notify tells systemd, if it is running.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }

// reloading tells systemd that a reload begins or has ended.
func reloading(begins bool) {
	if !begins {
		notify(daemon.SdNotifyReady)
		return
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
	}
}
