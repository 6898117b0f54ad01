package broker

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
)

// accepted is what the handshake of one connection has established about its peer.
type accepted struct {
	credentials.TLSInfo
	remote    string
	claims    attest.Claims
	workloads []*Workload // that the peer matches, at least one
}

func (a *accepted) fields() logrus.Fields { return peerFields(a.remote, a.claims) }

func peerFields(remote string, c attest.Claims) logrus.Fields {
	f := logrus.Fields{"peer": remote, "tcb": c.TCB.StatusName()}
	switch {
	case c.SGX != nil:
		f["mr_enclave"] = hex.EncodeToString(c.SGX.MREnclave[:])
	case c.TDX != nil:
		f["mr_td"] = hex.EncodeToString(c.TDX.MRTD[:])
	}
	return f
}

// gate is the handshake in front of gRPC: no connection gets past it whose peer has not shown genuine evidence that
// a workload's policy accepts.
type gate struct{ server *Server }

// ServerHandshake implements [credentials.TransportCredentials].
func (g *gate) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	s := g.server
	ctx, cancel := context.WithTimeout(context.Background(), s.config.Limits.Handshake)
	defer cancel()
	who := &accepted{remote: raw.RemoteAddr().String()}
	conn := tls.Server(raw, ratls.ServerConfig(s.config.Identity.Certificate, func(cs tls.ConnectionState) error {
		return s.admit(ctx, cs, who)
	}))
	if err := conn.HandshakeContext(ctx); err != nil {
		s.logRefusal(who, err)
		return nil, nil, err
	}
	who.TLSInfo = credentials.TLSInfo{
		State:          conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}
	s.config.Logger.WithFields(who.fields()).Info("peer accepted")
	return conn, who, nil
}

// admit verifies the peer's evidence and finds the workloads that it is.
func (s *Server) admit(ctx context.Context, cs tls.ConnectionState, who *accepted) error {
	ctx, cancel := context.WithTimeout(ctx, ratls.DefaultTimeout)
	defer cancel()
	if cs.NegotiatedProtocol != "h2" {
		return errors.New("the peer does not speak HTTP/2")
	}
	at := s.config.Now()
	claims, err := ratls.Genuine(ctx, s.config.Verifier, cs, at)
	if err != nil {
		return err
	}
	who.claims = claims
	var reasons []string
	for i := range s.config.Workloads {
		w := &s.config.Workloads[i]
		if err := w.Policy.Appraise(claims, at).Err(); err != nil {
			reasons = append(reasons, fmt.Sprintf("not %s: %v", w.Name, err))
			continue
		}
		who.workloads = append(who.workloads, w)
	}
	if len(who.workloads) == 0 {
		return attest.Errorf(attest.CodePolicy, "appraising peer",
			"If this peer is wanted, add its measurement to the policy.", "%s", strings.Join(reasons, "; "))
	}
	return nil
}

func (s *Server) logRefusal(who *accepted, err error) {
	log := s.config.Logger.WithFields(peerFields(who.remote, who.claims))
	var ours *attest.Error
	switch {
	case errors.As(err, &ours):
		log = log.WithField("code", string(attest.CodeOf(err)))
		if hint := attest.HintOf(err); hint != "" {
			log = log.WithField("hint", hint)
		}
		log.Warnf("peer refused: %v", err)
	case errors.Is(err, io.EOF):
		log.Debug("peer left during the handshake") // as probes of the port do
	default:
		log.Infof("handshake failed: %.200s", err.Error())
	}
}

// printable is a name chosen by a peer, for the log.
func printable(name string) string { return fmt.Sprintf("%.64q", name) }

// ClientHandshake implements [credentials.TransportCredentials].
func (*gate) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errNotAClient
}

// Info implements [credentials.TransportCredentials].
func (*gate) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials].
func (g *gate) Clone() credentials.TransportCredentials { return g }

// OverrideServerName implements [credentials.TransportCredentials].
func (*gate) OverrideServerName(string) error { return errNotAClient }
