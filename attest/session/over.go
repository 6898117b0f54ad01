package session

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Over are the options with which [grpc.NewClient] speaks over a TLS connection whose handshake is over: over this one, and
// over no other if it ends, for what the peer has proved it has proved on this connection. The state is that of the
// connection, which may be wrapped. The service config of a name server is ignored. The caller closes the connection.
func Over(conn net.Conn, state tls.ConnectionState) []grpc.DialOption {
	var used atomic.Bool
	return []grpc.DialOption{
		grpc.WithTransportCredentials(established{state}),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the attested connection is gone")
			}
			return conn, nil
		}),
		grpc.WithDisableServiceConfig(),
	}
}

// established are the credentials of a connection whose handshake is over.
type established struct{ state tls.ConnectionState }

// ClientHandshake implements [credentials.TransportCredentials].
func (e established) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return conn, credentials.TLSInfo{
		State:          e.state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// ServerHandshake implements [credentials.TransportCredentials].
func (established) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of a client")
}

// Info implements [credentials.TransportCredentials].
func (established) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials].
func (e established) Clone() credentials.TransportCredentials { return e }

// OverrideServerName implements [credentials.TransportCredentials].
func (established) OverrideServerName(string) error { return nil }
