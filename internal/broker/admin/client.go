package admin

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
)

// Client is an administrator's connection to a broker that has proved itself. Its calls are those of the service;
// their errors are the broker's, of its classes.
type Client struct {
	adminpb.AdminClient
	rpc  *grpc.ClientConn
	conn net.Conn
}

// DialOptions say whom to call and what to believe. All are needed.
type DialOptions struct {
	Address     string          // HOST:PORT of the admin channel
	Certificate tls.Certificate // the administrator's, with Leaf
	// Broker says which broker is the wanted one: verifier and policy, or its key. Attester is not needed.
	Broker session.ClientConfig
}

const stepDial = "connecting to the broker"

// Dial connects, and verifies the broker with evidence made for this connection. Nothing is sent before that but the
// administrator's certificate. The caller closes it.
func Dial(ctx context.Context, o DialOptions) (_ *Client, err error) {
	if err := policy.CheckServer(o.Broker.Policy); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", o.Address)
	if err != nil {
		return nil, attest.Errorf(attest.CodeUnreachable, stepDial, "Check the address: that of the admin channel.", "%w", err)
	}
	host, _, _ := net.SplitHostPort(o.Address)
	config := session.ClientTLS(&o.Certificate, host)
	conn := tls.Client(raw, config)
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, attest.Errorf(attest.CodeUnreachable, stepDial,
			"Is this the address of the admin channel, and is the certificate of an administrator's?", "%w", err)
	}
	state := conn.ConnectionState()
	c := &Client{conn: conn}
	c.rpc, err = grpc.NewClient("passthrough:///"+o.Address, append(session.Over(conn, state),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)),
		grpc.WithUnaryInterceptor(decodeErrors),
	)...)
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, stepDial, "", "%w", err)
	}
	c.AdminClient = adminpb.NewAdminClient(c.rpc)
	defer func() {
		if err != nil {
			_ = c.rpc.Close()
		}
	}()
	var nonce [session.NonceSize]byte
	if _, err := io.ReadFull(rand.Reader, nonce[:]); err != nil {
		return nil, attest.Errorf(attest.CodeInternal, stepDial, "", "%w", err)
	}
	shown, err := c.Prove(ctx, &sessionpb.Hello{Nonce: nonce[:]})
	if err != nil {
		return nil, err
	}
	if err := o.Broker.VerifyProof(ctx, state, o.Certificate.Leaf, nonce, shown); err != nil {
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() {
	_ = c.rpc.Close()
	_ = c.conn.Close()
}

// decodeErrors gives errors back the form that they had at the broker.
func decodeErrors(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, call grpc.UnaryInvoker,
	options ...grpc.CallOption) error {
	err := call(ctx, method, request, reply, conn, options...)
	if err == nil {
		return nil
	}
	const step = "asking the broker"
	for _, detail := range status.Convert(err).Details() {
		if d, ok := detail.(*sessionpb.Denial); ok {
			return attest.Errorf(attest.Code(d.GetCode()), step, session.Printable(d.GetHint()), "%s", session.Printable(d.GetReason()))
		}
	}
	return attest.Errorf(attest.CodeUnreachable, step,
		"A broker that refuses a certificate closes the connection: is it an administrator's, and still valid?",
		"%s", session.Printable(status.Convert(err).Message()))
}
