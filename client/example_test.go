package client_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/lab/softsgx"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

// A client asks a model server for a prediction, and sends the picture only to the enclave that its policy names. A software
// platform and the demo's model server stand in for the real ones.
func ExampleAttested() {
	platform, err := softsgx.New(softsgx.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	enclave := sgx.ReportBody{SGXClaims: attest.SGXClaims{MREnclave: [32]byte{7}, Attributes: attest.AttributeInit | attest.AttributeMode64Bit}}
	address, stop, err := serve(platform.Attester(enclave))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()

	ask := func(wanted [32]byte) {
		attested, err := client.Attested(&ratls.PeerVerifier{
			Verifier: dcap.NewVerifier(dcap.Config{
				Roots: []*x509.Certificate{platform.RootCA()}, Source: pccs.Stapled(platform.Collateral()),
			}),
			Policy: &policy.Policy{SGX: []policy.SGX{{MREnclave: wanted[:]}}},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		c, err := client.Dial(address, attested, client.Options{})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer c.Close()
		picture := make([]float32, client.ImageLength) // black; client.ReadImage reads a file
		answer, err := c.Predict(context.Background(), client.ResNet("resnet"), picture)
		if err != nil {
			fmt.Println("refused:", attest.CodeOf(err))
			return
		}
		fmt.Println("class", client.Best(answer), "of", len(answer))
	}
	ask([32]byte{7})
	ask([32]byte{8})
	// Output:
	// class 0 of 4
	// refused: policy
}

// serve runs a model server under a certificate with evidence.
func serve(attester attest.Attester) (address string, stop func(), err error) {
	certificate, err := ratls.NewApplicationCertificate(context.Background(), attester, ratls.Options{Names: []string{"localhost"}})
	if err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	model := &standin.Model{Name: "resnet", Version: 1, Network: standintest.NewNetwork()}
	server := standin.NewServer(model, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{certificate}})))
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), server.Stop, nil
}
