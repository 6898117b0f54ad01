package admin_test

import (
	"context"
	"net"
	"testing"

	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
)

// relaying forwards the proof of a genuine broker.
type relaying struct {
	adminpb.UnimplementedAdminServer
	to *admin.Client
}

func (r *relaying) Prove(ctx context.Context, hello *sessionpb.Hello) (*sessionpb.BrokerEvidence, error) {
	return r.to.Prove(ctx, hello)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
