package session_test

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/sesame-init/sesame/attest/session"
)

// TestCallsKeepToOneConnection: gRPC dials again by itself if a connection ends, and would reach a peer that has proved nothing.
func TestCallsKeepToOneConnection(t *testing.T) {
	key, err := session.NewKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(
		&tls.Config{Certificates: []tls.Certificate{key}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert})))
	healthpb.RegisterHealthServer(server, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-served })

	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, session.ClientTLS(&key, "127.0.0.1"))
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	rpc, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), session.Over(conn, conn.ConnectionState())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rpc.Close() })
	ask := func(ctx context.Context, p *peer.Peer) error {
		_, err := healthpb.NewHealthClient(rpc).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Peer(p))
		return err
	}
	var first peer.Peer
	for range 2 {
		if err := ask(t.Context(), &first); err != nil {
			t.Fatal(err)
		}
	}
	info, ok := first.AuthInfo.(credentials.TLSInfo)
	if !ok || !info.State.PeerCertificates[0].Equal(key.Leaf) || first.LocalAddr.String() != raw.LocalAddr().String() {
		t.Errorf("the call went to %+v", first)
	}

	_ = raw.Close() // the server still listens
	if err := ask(t.Context(), &peer.Peer{}); err == nil {
		t.Error("a call has reached the server over a second connection")
	}
}
