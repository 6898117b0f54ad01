package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
)

// connection is what the handshake of one connection has established. Without workloads nothing is known of the
// peer, and it can do no more than begin a session.
type connection struct {
	credentials.TLSInfo
	remote    string
	own       *x509.Certificate // that the broker has shown
	claims    attest.Claims
	workloads []*Workload // of the legacy wire that the peer matches
}

func (c *connection) fields() logrus.Fields { return peerFields(c.remote, c.claims) }

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

// gate is the handshake in front of gRPC. A peer that shows evidence in its certificate gets past it if the evidence
// is genuine and accepted for a workload of the legacy wire. One that shows none gets past it where sessions are
// served.
type gate struct{ server *Server }

// ServerHandshake implements [credentials.TransportCredentials].
func (g *gate) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	s := g.server
	ctx, cancel := context.WithTimeout(context.Background(), s.config.Limits.Handshake)
	defer cancel()
	who := &connection{remote: raw.RemoteAddr().String()}
	certificate := func(ctx context.Context) (*tls.Certificate, error) {
		c, err := s.config.Identity.Certificate(ctx)
		if err == nil {
			who.own = c.Leaf
		}
		return c, err
	}
	conn := tls.Server(raw, ratls.ServerConfig(certificate, func(cs tls.ConnectionState) error {
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
	if len(who.workloads) > 0 {
		s.config.Logger.WithFields(who.fields()).Info("peer accepted on the legacy wire")
	}
	return conn, who, nil
}

// admit decides whether a connection may carry requests, and which.
func (s *Server) admit(ctx context.Context, cs tls.ConnectionState, who *connection) error {
	ctx, cancel := context.WithTimeout(ctx, ratls.DefaultTimeout)
	defer cancel()
	if cs.NegotiatedProtocol != "h2" {
		return errors.New("the peer does not speak HTTP/2")
	}
	at := s.config.Now()
	claims, err := ratls.Genuine(ctx, s.config.Verifier, cs, at)
	if errors.Is(err, ratls.ErrNone) && s.sessions != nil && cs.Version == tls.VersionTLS13 {
		return nil
	}
	if err != nil {
		return err
	}
	who.claims = claims
	who.workloads, err = s.match(claims, at, true)
	return err
}

// match finds the workloads that a peer is. It fails where there is none.
func (s *Server) match(claims attest.Claims, at time.Time, legacy bool) (matched []*Workload, err error) {
	var reasons []string
	for i := range s.config.Workloads {
		w := &s.config.Workloads[i]
		if legacy && !w.Legacy {
			continue
		}
		if err := w.Policy.Appraise(claims, at).Err(); err != nil {
			reasons = append(reasons, fmt.Sprintf("not %s: %v", w.Name, err))
			continue
		}
		matched = append(matched, w)
	}
	if len(matched) > 0 {
		return matched, nil
	}
	if len(reasons) == 0 {
		reasons = []string{"no workload is served on the legacy wire"}
	}
	return nil, attest.Errorf(attest.CodePolicy, "appraising peer",
		"If this peer is wanted, add its measurement to the policy.", "%s", strings.Join(reasons, "; "))
}

func (s *Server) logRefusal(who *connection, err error) {
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
