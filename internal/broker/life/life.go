// Package life is the life of a key broker, from its start to the end of its last call.
//
//	           Start            Unlock          Listen            Serve
//	settings --------> [Locked] ------> [Open] -------> [Serving] -------> (ended)
//
// Each state is a type, and what a broker can do in a state is a method of that type: secrets are served by a [Serving]
// only, which there is no way to make but from an [Open] broker, and so from one with its root key and its witnesses'
// word. A transition takes the earlier value's place.
//
//   - A [Locked] broker is alive: it answers /healthz, is not ready, proves what it is to administrators and lets them
//     unlock it. It asks its replicas for the root key.
//   - An [Open] broker has its root key, knows that its log was not rolled back, and has a policy in force.
//   - A [Serving] broker listens. When its context ends it is draining: it takes no new calls, tells the service manager,
//     and waits for those under way.
//
// [Life.Close], which every state has, ends whatever has begun, in the reverse order.
package life

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/clock"
	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/silent"
)

// Settings are what a broker starts with.
type Settings struct {
	Place string // the kind of environment, for the log
	// Enclave is set if the host is not trusted: a later policy needs a higher version, and comes from an administrator
	// or signed, never from a file that the host can edit.
	Enclave  bool
	Identity broker.Identity
	Attester attest.Attester // nil outside an enclave
	Clock    *clock.Bounded

	Policy     *policy.Policy
	From       string                   // where the policy comes from, for the log
	Secrets    map[string]attest.Secret // of a file beside the store; the broker wipes them
	Collateral string                   // PCCS address or folder that replaces the policy's; empty: the policy's
	Private    privatefile.Rule         // for the files of store and root key
	Getenv     func(string) string      // the environment, which may name files of PostgreSQL's client

	// Signed reads the policy that the policy's key has signed; nil if none is followed.
	Signed func() ([]byte, error)
	// Edited reads the policy file that operators edit, and EditedName names it; nil if none is followed.
	Edited     func() ([]byte, error)
	EditedName string
	Hangup     <-chan os.Signal // asks to read the policy again
	Ticks      <-chan time.Time // when to look whether it has changed

	HTTP string // address for health and metrics; empty: none
	// Listening is called with the address once the broker answers.
	Listening func(address string)
	// Notify tells the service manager a state (sd_notify(3)).
	Notify func(state string)
	Log    *logrus.Logger
}

// Life is what all states of a broker share.
type Life struct {
	settings Settings
	clock    *timekeeper
	config   broker.Config
	keys     *keystore.Keystore
	late     *latePolicies
	health   *changingHandler

	closers []func() // end what has begun, in that order
}

func (l *Life) onClose(f func()) { l.closers = append(l.closers, f) }

// Close ends what has begun and waits for it. A second call does nothing.
func (l *Life) Close() {
	for len(l.closers) > 0 {
		last := len(l.closers) - 1
		end := l.closers[last]
		l.closers = l.closers[:last]
		end()
	}
}

// Locked is a broker that may lack its root key.
type Locked struct{ *Life }

// Open is a broker that has its root key and a policy in force.
type Open struct{ *Life }

// Serving is a broker that listens.
type Serving struct {
	*Life
	server   *broker.Server
	address  string
	listener net.Listener
}

// ErrStopped is of a broker whose context has ended before it was open.
var ErrStopped = errors.New("the broker was stopped before it was open")

// Start opens the store and answers on the ports for health and for administrators, the latter until ctx ends. If it
// fails nothing is left open.
func Start(ctx context.Context, s Settings) (_ *Locked, err error) {
	l := &Life{settings: s, clock: &timekeeper{Bounded: s.Clock}, late: &latePolicies{}}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	metrics := broker.NewMetrics()
	if err := l.openKeystore(ctx, metrics); err != nil {
		return nil, err
	}
	l.clock.keys = l.keys
	l.config = broker.Config{Identity: s.Identity, Keeper: l.keys, Now: l.clock.Now, Metrics: metrics, Logger: s.Log}
	if s.Attester != nil {
		if err := l.prove(); err != nil {
			return nil, err
		}
	}
	l.onClose(l.late.close) // after what is below, which looks at the policies
	if err := l.operate(ctx, broker.Starting(l.keys, metrics)); err != nil {
		return nil, err
	}
	if err := l.administer(ctx); err != nil {
		return nil, err
	}
	return &Locked{l}, nil
}

// prove prepares the evidence of sessions. Its collateral is found as the first policy says until policies are in force.
func (l *Life) prove() error {
	early, err := l.trust(l.settings.Policy.Trust, silent.Logger())
	if err != nil {
		return err
	}
	l.onClose(early.Close)
	l.late.first = func(ctx context.Context, own attest.Evidence) (*dcap.Collateral, error) {
		return early.Collateral(ctx, own, l.clock.Now())
	}
	quotes := l.settings.Policy.Broker.Quotes
	l.config.Quoter = session.NewQuoter(session.QuoterOptions{
		Attester: l.settings.Attester, Collateral: l.late.collateral, Window: time.Duration(*quotes.Window), Size: quotes.Size,
	})
	return nil
}

// Unlock waits for the root key and for the witnesses, and puts the newest policy in force. The error is [ErrStopped] if
// ctx ends before.
func (l *Locked) Unlock(ctx context.Context) (*Open, error) {
	if err := l.awaitKey(ctx); err != nil {
		return nil, err
	}
	if err := l.awaitWitnesses(ctx); err != nil {
		return nil, err
	}
	if err := l.clock.recall(ctx); err != nil {
		return nil, err
	}
	if l.settings.Policy.Broker.Store != (policy.StoreAt{}) { // the key of a log in memory is another one at every start
		key, err := l.keys.LogKey()
		if err != nil {
			return nil, err
		}
		l.settings.Log.Infof("clients check receipts of the release log by \"log_key\": %q", key)
	}
	if err := l.pickNewest(ctx); err != nil {
		return nil, err
	}
	if err := l.adopt(ctx); err != nil {
		return nil, err
	}
	return &Open{l.Life}, nil
}

// Listen checks the broker's own evidence as a client will, and takes the address.
func (o *Open) Listen(ctx context.Context, address string) (*Serving, error) {
	if o.settings.Attester != nil {
		if err := o.checkSelf(ctx); err != nil {
			return nil, err
		}
	}
	server, err := broker.New(o.config)
	if err != nil {
		return nil, err
	}
	listener, err := listenOn(ctx, address)
	if err != nil {
		return nil, err
	}
	o.onClose(func() { _ = listener.Close() }) // which serving has done, if it came so far
	o.health.become(server.Handler())
	return &Serving{o.Life, server, address, listener}, nil
}

// Serve answers workloads, and follows policies, until ctx ends. It returns when the calls under way have ended, or the
// time to drain has.
func (s *Serving) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var followers sync.WaitGroup
	defer followers.Wait()
	following, stop := context.WithCancel(ctx)
	defer stop()
	follow := []func(context.Context){s.followPolicy}
	if s.settings.Enclave { // other replicas push policies, too
		follow = append(follow, s.followStore)
	}
	for _, run := range follow {
		followers.Go(fault.Guard(func() { run(following) }))
	}
	p := s.config.Policies.Current()
	s.settings.Log.WithFields(logrus.Fields{"policy": p.Version, "workloads": len(p.Workloads), "place": s.settings.Place}).
		Info("serving session v1")
	if p.Legacy() {
		s.settings.Log.Warn("serving the legacy wire GRPC-RATLS, too, which proves no freshness")
	}
	s.settings.Listening(reached(s.address, s.listener))
	s.settings.Notify(daemon.SdNotifyReady)
	followers.Go(fault.Guard(func() {
		<-following.Done()
		s.settings.Notify(daemon.SdNotifyStopping)
	}))
	return s.server.Serve(ctx, s.listener)
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

func listenOn(ctx context.Context, address string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, attest.Errorf(attest.CodeConfig, "listening on "+address,
			"Write HOST:PORT, and see whether another program has the port.", "%w", err)
	}
	return l, nil
}
