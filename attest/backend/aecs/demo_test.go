package aecs_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/internal/aecs/uar"
	"github.com/sesame-init/sesame/lab/aecstest"
)

// TestTheDemonstrationServerGivesItsPassword asks a server that is set up as the upstream's demonstration: ours, or,
// if SESAME_AECS has its host:port, any other. It proves that this client and that server understand each other.
func TestTheDemonstrationServerGivesItsPassword(t *testing.T) {
	for _, generation := range []aecs.Generation{aecs.GenerationA, aecs.GenerationB} {
		d := newDeployment(t, generation, io.Discard)
		d.plaintext()
		address := os.Getenv("SESAME_AECS")
		if address == "" {
			d.server.Attester, d.server.Verifier = nil, nil
			var err error
			if d.server.Secrets, err = aecstest.DemoSecrets(now); err != nil {
				t.Fatal(err)
			}
			d.start(t)
			address = d.client.Servers[0]
		}
		d.client.Servers, d.client.Generation, d.client.AllowDowngrade = []string{address}, aecs.Auto, true
		d.client.NewKey = nil // one that is made as everywhere but in tests
		key := identityHash(t, address)
		d.client.Policy, d.client.NoServerEvidence, d.client.ServerKey = nil, true, &key
		got, err := d.connect(t).Fetch(t.Context(), []string{"secret-my-password"})
		if err != nil || string(got["secret-my-password"].Expose()) != "password-test" {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// identityHash asks a server who it is, as aecsadmin status does, and checks what it signs.
func identityHash(t *testing.T, address string) [32]byte {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := wire.NewAecsClient(conn).GetAecsStatus(t.Context(), &wire.GetAecsStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	report, err := uar.Read(answer.GetAuthRaReport())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(answer.GetStatusSig().GetPlainHash())
	if err := rsa.VerifyPKCS1v15(report.PublicKey, crypto.SHA256, digest[:],
		answer.GetStatusSig().GetPlainHashSig()); err != nil {
		t.Error(err)
	}
	var status wire.EnclaveStatus
	if err := wire.Parse(answer.GetStatusStr(), &status); err != nil {
		t.Fatal(err)
	}
	hash, err := hex.DecodeString(status.GetIdentityHash())
	if err != nil || len(hash) != 32 || [32]byte(hash) != report.Fingerprint {
		t.Fatalf("identity hash %s, key %X (%v)", status.GetIdentityHash(), report.Fingerprint, err)
	}
	return [32]byte(hash)
}
