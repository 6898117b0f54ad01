package client_test

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/client"
	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

func TestAttestedServersAreVerifiedBeforeAnythingIsSent(t *testing.T) {
	platform, foreign := brokertest.Platform(t, softsgx.Options{}), brokertest.Platform(t, softsgx.Options{})
	another := brokertest.Enclave(0x11, 1, 2)
	certificate := func(a attest.Attester) tls.Certificate {
		c, err := ratls.NewApplicationCertificate(t.Context(), a, ratls.Options{Now: brokertest.Clock, Names: []string{"localhost", "127.0.0.1"}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	genuine := certificate(platform.Attester(brokertest.Workload()))
	unlabelled := brokertest.Certificate(t, platform, brokertest.Workload())
	legacy := brokertest.WorkloadPolicy()
	legacy.SGX[0].Binding = attest.BindingLegacy
	plain, err := tls.X509KeyPair(func() ([]byte, []byte) {
		i := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil, "localhost")
		return i.Certificate, i.Key
	}())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		server tls.Certificate
		at     time.Time
		policy *policy.Policy
		code   attest.Code // "" where it is accepted
	}{
		{"genuine and wanted", genuine, brokertest.Now, brokertest.WorkloadPolicy(), ""},
		{"without a label", unlabelled, brokertest.Now, brokertest.WorkloadPolicy(), attest.CodePolicy},
		{"without a label, as wanted", unlabelled, brokertest.Now, legacy, ""},
		{"with a label, against the policy", genuine, brokertest.Now, legacy, attest.CodePolicy},
		{"without a label, too old", unlabelled, brokertest.Now.Add(ratls.DefaultValidity + time.Hour), legacy, attest.CodeEvidence},
		{"another measurement", certificate(platform.Attester(another)), brokertest.Now, brokertest.WorkloadPolicy(), attest.CodePolicy},
		{"another root", certificate(foreign.Attester(brokertest.Workload())), brokertest.Now, brokertest.WorkloadPolicy(), attest.CodeEvidence},
		{"no evidence", plain, time.Now(), brokertest.WorkloadPolicy(), attest.CodeEvidence},
		{"too old", genuine, brokertest.Now.Add(ratls.DefaultValidity + time.Hour), brokertest.WorkloadPolicy(), attest.CodeEvidence},
	} {
		t.Run(test.name, func(t *testing.T) {
			served := new(pod)
			server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{test.server}})))
			tf.RegisterPredictionServiceServer(server, served)
			attested, err := client.Attested(&ratls.PeerVerifier{
				Verifier: brokertest.Verifier(platform), Policy: test.policy, Now: func() time.Time { return test.at },
			})
			if err != nil {
				t.Fatal(err)
			}
			c, err := client.Dial(standintest.Serve(t, server), attested, client.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Predict(t.Context(), client.ResNet("resnet"), grey())
			if (err == nil) != (test.code == "") || err != nil && attest.CodeOf(err) != test.code {
				t.Errorf("error is %v, want code %q", err, test.code)
			}
			if sent := served.served.Load() > 0; sent != (test.code == "") {
				t.Errorf("a request was sent: %v", sent)
			}
		})
	}
}

func TestAPolicyThatNoServerCanProveIsRefused(t *testing.T) {
	challenged := &policy.Policy{TPM: []policy.TPM{{EK: make([]byte, 32), Wrap: true, PCRs: policy.PCRs{7: make([]byte, 32)}}}}
	if _, err := client.Attested(&ratls.PeerVerifier{Policy: challenged}); attest.CodeOf(err) != attest.CodeConfig {
		t.Error(err)
	}
}
