package client

import (
	"crypto/tls"
	"errors"
	"sync/atomic"

	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
)

// Attested makes credentials that accept a server only if the certificate that it shows carries genuine evidence of
// an environment that the peer verifier's policy wants, which made the certificate's key inside (init's app_tls).
// Every connection is verified anew, before a byte of a request is sent.
//
// An entry of the policy takes certificates that say what they are, an application's. Images built before there were
// such, Occlum's and Gramine's servers and those with app_tls.binding "legacy" need an entry with binding: legacy; a
// caller warns of the entries that [policy.Policy.LegacyBindings] names.
//
// The evidence is as old as the server's start; it says what the server was then. The certificate's dates bound its
// age.
//
// A policy that demands what a server cannot prove is an error of code [attest.CodeConfig].
func Attested(v *ratls.PeerVerifier) (credentials.TransportCredentials, error) {
	if err := policy.CheckServer(v.Policy); err != nil {
		return nil, err
	}
	a := &attestedCredentials{last: new(atomic.Pointer[attest.Error])}
	config := ratls.ClientConfig(nil, "", func(cs tls.ConnectionState) error {
		err := v.VerifyConnection(cs)
		var refused *attest.Error
		if err != nil && !errors.As(err, &refused) {
			refused = &attest.Error{Code: attest.CodeEvidence, Step: "verifying server", Err: err,
				Hint: "Is it a server whose init makes its key with app_tls? One with a key from the broker is verified with --crt."}
		}
		a.last.Store(refused)
		return err
	})
	config.MinVersion = tls.VersionTLS13
	config.CurvePreferences = nil
	a.TransportCredentials = credentials.NewTLS(config)
	return a, nil
}

// attestedCredentials remembers why the last server was refused: gRPC makes a string of a handshake's error.
type attestedCredentials struct {
	credentials.TransportCredentials
	last *atomic.Pointer[attest.Error]
}

func (a *attestedCredentials) refusal() error {
	if refused := a.last.Load(); refused != nil {
		return refused
	}
	return nil
}

// Clone implements [credentials.TransportCredentials].
func (a *attestedCredentials) Clone() credentials.TransportCredentials {
	return &attestedCredentials{a.TransportCredentials.Clone(), a.last}
}
