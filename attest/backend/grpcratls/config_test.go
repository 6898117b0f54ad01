package grpcratls

import (
	"context"
	"testing"

	"github.com/sesame-init/sesame/attest"
)

type noEvidence struct{}

func (noEvidence) Type() attest.EvidenceType { return attest.SGX }
func (noEvidence) Evidence(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{}, nil
}

// The legacy wire, whose evidence is not fresh, is for those who name it.
func TestTheZeroProtocolIsTheSession(t *testing.T) {
	c, err := New(Config{Servers: []string{"a:1"}, Attester: noEvidence{}, BrokerKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	if c.config.Protocol != SessionV1 {
		t.Errorf("the protocol is %q", c.config.Protocol)
	}
	if _, err := New(Config{Servers: []string{"a:1"}, Attester: noEvidence{}, BrokerKey: make([]byte, 32), Protocol: Legacy}); attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("a key on the legacy wire: %v", err)
	}
}
