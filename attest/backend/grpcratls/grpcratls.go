// Package grpcratls fetches secrets from a key broker by one of two protocols over gRPC.
//
// [SessionV1] is the protocol of package session: fresh evidence of both sides, bound to the connection, and all
// secrets in one stream. Sesame's keybroker speaks it.
//
// [Legacy] is GRPC-RATLS, the wire of Occlum's init_ra_server and init_grpc_ratls. One Fetch makes one key and one
// quote, and gets all secrets over one connection, one call each. Broker and client verify each other in the TLS
// handshake, before a byte of a request is sent. Two of its properties stay: the evidence is not fresh (see package
// ratls), and a broker of Occlum's that refuses this environment just closes the connection. The latter looks like a
// broker that crashed; it is retried a few times and then reported as denied. A secret that the broker does not have
// or does not release to this environment is one and the same answer.
//
// Several brokers are tried in order, again and again with growing, jittered pauses, until the context ends or no
// broker can be expected to change its mind. The protocol is never negotiated: the config names it.
//
// The addresses may come from the host: a wrong one leads to a peer that the policy refuses.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The legacy
// protocol is Occlum's and stays as it is; the session protocol is that of package attest/session.
package grpcratls

import (
	"context"
	"crypto/tls"
	"errors"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/silent"
)

// Bounds of what a broker may send on the legacy wire, in decoded bytes: those of Occlum's init. A session takes
// [session.MaxSecret].
const (
	MaxImageKey = 256
	MaxSecret   = 10240
)

const (
	// imageKey is the name for which MaxImageKey counts.
	imageKey = "image_key"
	// ambiguousTries is how often a broker that closes the connection without a word is tried.
	ambiguousTries = 3
	maxNames       = 1024
)

// A Protocol is what is spoken with the broker.
type Protocol string

// The protocols.
const (
	SessionV1 Protocol = "session"
	Legacy    Protocol = "legacy"
)

// Config of a [Client]. All fields without a default are needed.
type Config struct {
	Servers  []string // "host:port", tried in order
	Protocol Protocol // default SessionV1
	Attester attest.Attester
	Verifier attest.Verifier
	// Staple makes a verifier that takes the collateral which a broker sends in a session. If it is nil, or the
	// broker sends none, Verifier counts.
	Staple func(*dcap.Collateral) attest.Verifier
	Policy ratls.Appraiser // what the broker must be
	// BrokerKey pins a broker outside an enclave instead, and Log demands a receipt of its release log: see
	// [session.ClientConfig]. Both are of sessions only.
	BrokerKey []byte
	Log       note.Verifier
	Now       func() time.Time   // default time.Now
	Logger    logrus.FieldLogger // default: nothing is logged
	// Pause before the second round of tries, doubled every round up to 16 times, each time shortened at
	// random by up to half. Default 500 ms.
	Pause time.Duration
}

// Client implements [backend.Backend]. It is safe for concurrent use.
type Client struct {
	config Config
}

// New checks the config. The error's code is [attest.CodeConfig].
func New(c Config) (*Client, error) {
	var problems kind.Problems
	c.check(problems.Add)
	if c.Attester == nil {
		problems.Add("attester", "is missing", "")
	}
	if c.BrokerKey == nil && (c.Verifier == nil || c.Policy == nil) {
		problems.Add("broker_policy", "is missing, or the verifier is", "both, or broker_key")
	}
	if err := problems.Err("configuring " + name); err != nil {
		return nil, err
	}
	if c.Protocol == "" {
		c.Protocol = SessionV1
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Pause == 0 {
		c.Pause = 500 * time.Millisecond
	}
	c.Logger = silent.Or(c.Logger)
	return &Client{config: c}, nil
}

// Name implements [backend.Backend].
func (*Client) Name() string { return name }

// Fetch implements [backend.Backend].
func (c *Client) Fetch(ctx context.Context, names []string) (map[string]attest.Secret, error) {
	if err := checkNames(names); err != nil {
		return nil, err
	}
	certificate, err := c.certificate(ctx)
	if err != nil {
		return nil, err
	}
	rounds := backend.Rounds{
		Servers: c.config.Servers, Kind: "broker", Pause: c.config.Pause, Logger: c.config.Logger,
		Final: func(err error, round int) bool {
			var silent *silentError
			return !backend.Passing(err) && (!errors.As(err, &silent) || round >= ambiguousTries)
		},
		After: func(err error) time.Duration {
			var busy *session.BusyError
			if errors.As(err, &busy) {
				return busy.After
			}
			return 0
		},
	}
	return rounds.Fetch(ctx, func(ctx context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
		return c.try(ctx, turn, &certificate, names)
	})
}

// certificate is this environment's for one Fetch. In a session it only carries a key.
func (c *Client) certificate(ctx context.Context) (tls.Certificate, error) {
	if c.config.Protocol == Legacy {
		certificate, err := ratls.NewCertificate(ctx, c.config.Attester, ratls.Options{Now: c.config.Now})
		if err != nil && ctx.Err() != nil {
			return certificate, attest.Errorf(attest.CodeUnreachable, "making evidence",
				"Raise the timeout: it ended before any broker was asked.", "%w", ctx.Err())
		}
		return certificate, err
	}
	certificate, err := session.NewKey(c.config.Now())
	if err != nil {
		return certificate, attest.Errorf(attest.CodeInternal, "making a key", "", "%w", err)
	}
	return certificate, nil
}

func checkNames(names []string) error {
	const step = "fetching secrets"
	if len(names) > maxNames {
		return attest.Errorf(attest.CodeSecret, step, "", "%d names, at most %d are asked for", len(names), maxNames)
	}
	seen := map[string]bool{}
	for _, n := range names {
		if n == "" || len(n) > 255 || seen[n] {
			return attest.Errorf(attest.CodeSecret, step, "", "the name %.40q is empty, too long or asked for twice", n)
		}
		seen[n] = true
	}
	return nil
}

// try fetches all secrets from one server over one connection.
func (c *Client) try(ctx context.Context, turn *backend.Turn, certificate *tls.Certificate, names []string) (
	map[string]attest.Secret, error) {
	link, err := c.connect(ctx, turn.Server, certificate)
	if err != nil {
		return nil, err
	}
	defer link.close()
	if c.config.Protocol == Legacy {
		link.verified = true // in the handshake
		turn.Verified()
		return link.callEach(ctx, names)
	}
	config := session.ClientConfig{
		Attester: c.config.Attester, Verifier: c.config.Verifier, Staple: c.config.Staple,
		Policy: c.config.Policy, BrokerKey: c.config.BrokerKey, Log: c.config.Log, Now: c.config.Now,
		Verified: func() {
			link.verified = true
			turn.Verified()
		},
		Own: turn.Own,
	}
	released, err := config.Fetch(ctx, link.rpc, link.state, certificate, names)
	var ours *attest.Error
	switch {
	case err != nil && !errors.As(err, &ours):
		return nil, link.explain(ctx, "asking for secrets", err)
	case err != nil:
		return nil, err
	case released.Receipt != nil:
		c.config.Logger.WithField("verified", c.config.Log != nil).
			Infof("the broker's release log has this as entry %d", released.Receipt.Index)
	}
	return released.Secrets, nil
}

// callEach gets one secret after the other on the legacy wire.
func (l *link) callEach(ctx context.Context, names []string) (_ map[string]attest.Secret, err error) {
	client := wire.NewGrSecretClient(l.rpc)
	secrets := make(map[string]attest.Secret, len(names))
	defer func() {
		if err != nil {
			for _, s := range secrets {
				s.Wipe()
			}
		}
	}()
	for _, name := range names {
		reply, err := client.GetSecret(ctx, &wire.SecretRequest{Name: name})
		if err != nil {
			return nil, l.explain(ctx, "asking for secret "+name, err)
		}
		limit := MaxSecret
		if name == imageKey {
			limit = MaxImageKey
		}
		secret, err := wire.DecodeSecret(reply.GetSecret(), limit)
		clear(reply.GetSecret())
		if err != nil {
			return nil, attest.Errorf(attest.CodeSecret, "reading secret "+name,
				"Store the secret in the broker as standard base64 on one line.", "%w", err)
		}
		secrets[name] = secret
	}
	return secrets, nil
}

// explain turns the failure of a call into a refusal with its likely cause. What a broker says counts once it is
// verified; before that it can only be shown, and the broker be tried again.
func (l *link) explain(ctx context.Context, step string, err error) error {
	if ctx.Err() != nil {
		return attest.Errorf(attest.CodeUnreachable, step,
			"The broker accepted the connection but does not answer; look at its log.", "%w", context.Cause(ctx))
	}
	s := status.Convert(err)
	if !l.verified {
		hint := "It has proved nothing yet, so this is only shown. Look at the broker's log; it is tried again."
		if s.Code() == codes.Unimplemented {
			hint = "Is this the address of a GRPC-RATLS key broker, and does it speak this protocol? It is tried again."
		}
		return attest.Errorf(attest.CodeUnreachable, step, hint,
			"a broker that is not verified ends the call with %s: %s", s.Code(), attest.Quote(s.Message()))
	}
	if refusal := l.peer.refusal(); refusal != nil {
		return refusal
	}
	if fault := session.Fault(err); fault != nil {
		return fault
	}
	switch s.Code() {
	case codes.Canceled, codes.NotFound:
		return attest.Errorf(attest.CodeSecret, step,
			"Check the name against the broker's secrets, and that the broker releases it to this measurement.",
			"the broker has no such secret for this enclave")
	case codes.PermissionDenied, codes.Unauthenticated:
		return attest.Errorf(attest.CodeDenied, step,
			"The broker's log says why; its policy must name this enclave's measurement.", "the broker denies it")
	case codes.ResourceExhausted:
		return attest.Errorf(attest.CodeSecret, step, "Secrets on this wire may have 10240 bytes, an image key 256.",
			"the reply is larger than is read")
	case codes.Unimplemented:
		return attest.Errorf(attest.CodeDenied, step, "Is this the address of a GRPC-RATLS key broker?",
			"the peer is no key broker, or does not speak this protocol")
	}
	return attest.Errorf(attest.CodeUnreachable, step, "Look at the broker's log.", "%s: %s", s.Code(), attest.Quote(s.Message()))
}
