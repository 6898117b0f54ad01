package grpcratls

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
)

// maxReply bounds a reply in bytes: the largest secret in base64, quotes and framing.
const maxReply = MaxSecret/3*4 + 64

const (
	// maxHeaders bounds in bytes the headers or trailers of an answer, CONTINUATION frames included. A broker's largest
	// trailer is the status of a fault, some 4 KiB.
	maxHeaders = 16 << 10
	// window is how much a broker may send ahead of our reading, in bytes: HTTP/2's own default, which never grows.
	window = 64<<10 - 1
)

// link is one connection with gRPC on it. It is never replaced by another one behind our back.
type link struct {
	peer     *peerConn
	state    tls.ConnectionState
	rpc      *grpc.ClientConn
	verified bool // the broker has proved what it is
}

func (l *link) close() {
	_ = l.rpc.Close()
	_ = l.peer.Close()
}

// connect dials. On the legacy wire it verifies the broker and shows it our evidence.
func (c *Client) connect(ctx context.Context, server string, certificate *tls.Certificate) (*link, error) {
	const step = "connecting"
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUnreachable, step,
			"Check the broker's address, and that it is up and reachable from here.", "%w", err)
	}
	conn := tls.Client(raw, c.tls(ctx, server, certificate))
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, explainHandshake(err)
	}
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		_ = conn.Close()
		return nil, attest.Errorf(attest.CodeUnreachable, step, "Is this the address of a GRPC-RATLS key broker?",
			"the peer does not speak HTTP/2")
	}
	peer := &peerConn{Conn: conn}
	state := conn.ConnectionState()
	rpc, err := grpc.NewClient("passthrough:///"+server, append(session.Over(peer, state),
		grpc.WithDisableRetry(),
		grpc.WithMaxHeaderListSize(maxHeaders),
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
	)...)
	if err != nil {
		_ = conn.Close()
		return nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	return &link{peer: peer, state: state, rpc: rpc}, nil
}

// tls is the configuration of one connection.
func (c *Client) tls(ctx context.Context, server string, certificate *tls.Certificate) *tls.Config {
	host, _, _ := net.SplitHostPort(server)
	if c.config.Protocol == SessionV1 {
		return session.ClientTLS(certificate, host)
	}
	verifier := ratls.PeerVerifier{Verifier: c.config.Verifier, Policy: c.config.Policy, Now: c.config.Now, Legacy: true}
	return ratls.ClientConfig(certificate, host, func(cs tls.ConnectionState) error {
		if _, err := verifier.Verify(ctx, cs); err != nil {
			return &attest.Error{Code: attest.CodeOf(err), Step: "verifying broker", Err: err}
		}
		return nil
	})
}

// explainHandshake says what a failed handshake means. Our own verdict on the broker is passed on as it is. What the
// broker says in a handshake that did not complete is not proved to be its word.
func explainHandshake(err error) error {
	var ours *attest.Error
	if errors.As(err, &ours) {
		return ours
	}
	const step = "handshaking"
	hint := "Is this the address of a GRPC-RATLS key broker, and is it up?"
	if alert, ok := remoteAlert(err); ok {
		hint = "Is this the address of a GRPC-RATLS key broker? It must speak TLS 1.2 or 1.3 with P-256."
		if strings.Contains(alert, "certificate") {
			hint = hintRefused
		}
	}
	return attest.Errorf(attest.CodeUnreachable, step, hint, "%w", attest.Foreign(err))
}

const hintRefused = "The broker's log says why: its policy must name this enclave's measurement and serve it on this wire."

func refusedUs(step string, err error) error {
	return attest.Errorf(attest.CodeDenied, step, hintRefused, "the broker refused this enclave's evidence: %w", err)
}

// remoteAlert is the text of the TLS alert that the peer has sent.
func remoteAlert(err error) (string, bool) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return op.Err.Error(), true
	}
	return "", false
}

// silentError is a connection that ended without a word right after the handshake.
type silentError struct{ err error }

func (e *silentError) Error() string {
	return fmt.Sprintf("the broker refused this enclave's evidence or went away: %v", e.err)
}

func (e *silentError) Unwrap() error { return e.err }

// peerConn is the attested connection. It remembers how reading began: in TLS 1.3 the client's handshake is over
// before the server has looked at the client's evidence, so a refusal is what the first read meets.
type peerConn struct {
	net.Conn

	mu    sync.Mutex
	heard bool  // something was read
	err   error // the first failure
}

// Read implements [net.Conn].
func (c *peerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.note(n > 0, err)
	return n, err
}

// Write implements [net.Conn].
func (c *peerConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.note(false, err)
	return n, err
}

func (c *peerConn) note(heard bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = c.heard || heard
	if c.err == nil {
		c.err = err
	}
}

// refusal is the error for a connection that the broker ended before it said anything, nil for any other.
func (c *peerConn) refusal() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return nil
	}
	const step = "waiting for the broker's verdict"
	if _, ok := remoteAlert(c.err); ok {
		return refusedUs(step, c.err)
	}
	if c.heard {
		return nil
	}
	return attest.Errorf(attest.CodeDenied, step,
		"The broker's log says which. A refusal means that its policy does not name this enclave's measurement, or that "+
			"the broker is an old one without collateral for the platform.", "%w", &silentError{c.err})
}
