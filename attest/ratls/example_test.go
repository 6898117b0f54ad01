package ratls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// An application in an enclave serves TLS under a certificate that carries evidence, and a client talks to it only if the
// evidence is genuine and its policy wants it. A software platform takes the place of SGX: in an enclave the attester is a
// device ([sgx.Open]), and the verifier needs no roots.
func ExamplePeerVerifier() {
	platform, err := softsgx.New(softsgx.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	enclave := sgx.ReportBody{SGXClaims: attest.SGXClaims{
		MREnclave: [32]byte{1}, Attributes: attest.AttributeInit | attest.AttributeMode64Bit,
	}}

	// The server.
	ctx := context.Background()
	certificate, err := ratls.NewApplicationCertificate(ctx, platform.Attester(enclave), ratls.Options{Names: []string{"localhost"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer listener.Close()
	go answer(listener)

	// The client.
	dial := func(wanted [32]byte) {
		peer := &ratls.PeerVerifier{
			Policy: &policy.Policy{SGX: []policy.SGX{{MREnclave: wanted[:]}}},
			Verifier: dcap.NewVerifier(dcap.Config{
				Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(platform.Collateral()),
			}),
		}
		conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{
			InsecureSkipVerify: true, // names and chains mean nothing; the peer verifier decides
			VerifyConnection:   peer.VerifyConnection,
		})
		if err != nil {
			fmt.Println("refused:", attest.CodeOf(err))
			return
		}
		defer conn.Close()
		text, err := io.ReadAll(conn)
		fmt.Println(string(text), err)
	}
	dial([32]byte{1})
	dial([32]byte{2})
	// Output:
	// hello from the enclave <nil>
	// refused: policy
}

// answer greets every client.
func answer(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "hello from the enclave")
		_ = conn.Close()
	}
}
