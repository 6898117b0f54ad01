package client_test

import (
	"context"
	"crypto/x509/pkix"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/client"
	tf "github.com/sesame-init/sesame/client/tfserving"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/standintest"
)

// pod answers every prediction with 1 and counts them.
type pod struct {
	tf.UnimplementedPredictionServiceServer
	served atomic.Int64
	// fail makes the first requests fail with Unavailable.
	fail atomic.Int64
}

func (p *pod) Predict(context.Context, *tf.PredictRequest) (*tf.PredictResponse, error) {
	p.served.Add(1)
	if p.fail.Add(-1) >= 0 {
		return nil, status.Error(codes.Unavailable, "going away")
	}
	return &tf.PredictResponse{Outputs: map[string]*tf.TensorProto{
		"activation_49": {Dtype: tf.DataType_DT_FLOAT, FloatVal: []float32{1}},
	}}, nil
}

// start serves pods with one identity and returns their addresses.
func start(t *testing.T, identity *standintest.Identity, pods ...*pod) (addresses []string) {
	config := filepath.Join(t.TempDir(), "ssl.cfg")
	standintest.WriteFile(t, config, identity.SSLConfig())
	for _, p := range pods {
		creds, err := standin.Credentials(config)
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer(grpc.Creds(creds))
		tf.RegisterPredictionServiceServer(server, p)
		addresses = append(addresses, standintest.Serve(t, server))
	}
	return addresses
}

// service is a balancer of TCP connections, in turn: what a Kubernetes service is to its clients.
func service(t *testing.T, pods []string) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; ; i++ {
			outside, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer outside.Close()
				inside, err := net.Dial("tcp", pods[i%len(pods)])
				if err != nil {
					return
				}
				defer inside.Close()
				go func() {
					_, _ = io.Copy(inside, outside)
					inside.Close()
				}()
				_, _ = io.Copy(outside, inside)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		all.Wait()
	})
	return listener.Addr().String()
}

func dial(t *testing.T, address string, identity *standintest.Identity, o client.Options) *client.Client {
	creds, err := client.Pinned(client.Pin{Certificate: identity.Certificate, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(address, creds, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConnectionsReachEveryPodBehindAService(t *testing.T) {
	identity := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	for _, test := range []struct{ connections, reached int }{{1, 1}, {6, 3}} {
		pods := []*pod{{}, {}, {}}
		address := service(t, start(t, identity, pods...))
		c := dial(t, address, identity, client.Options{Connections: test.connections})
		reached := func() (n int) {
			for _, p := range pods {
				if p.served.Load() > 0 {
					n++
				}
			}
			return n
		}
		// A connection takes part as soon as it is open, so the first requests may all take the first one.
		for i := 0; i < 100 || reached() < test.reached && i < 10_000; i++ {
			if _, err := c.Predict(t.Context(), client.ResNet("resnet"), grey()); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		if got := reached(); got != test.reached {
			t.Errorf("%d connections reach %d of 3 pods, not %d", test.connections, got, test.reached)
		}
	}
}

func TestRequestsAreTriedAgainAsOftenAsAsked(t *testing.T) {
	identity := standintest.NewIdentity(t, pkix.Name{CommonName: "localhost"}, nil)
	for _, test := range []struct {
		failures, retries, tries int
		code                     attest.Code // "" for an answer
	}{
		{failures: 2, retries: 2, tries: 3},
		{failures: 2, retries: 1, tries: 2, code: attest.CodeUnreachable},
		{failures: 1, retries: 0, tries: 1, code: attest.CodeUnreachable},
	} {
		p := new(pod)
		p.fail.Store(int64(test.failures))
		c := dial(t, start(t, identity, p)[0], identity, client.Options{Retries: test.retries})
		_, err := c.Predict(t.Context(), client.ResNet("resnet"), grey())
		if (err == nil) != (test.code == "") || err != nil && attest.CodeOf(err) != test.code {
			t.Errorf("%+v: error is %v", test, err)
		}
		if p.served.Load() != int64(test.tries) || c.Retries() != test.tries-1 {
			t.Errorf("%+v: tried %d times, and says %d retries", test, p.served.Load(), c.Retries())
		}
		c.Close()
	}
}

func TestOptionsAreBounded(t *testing.T) {
	for _, o := range []client.Options{{Connections: -1}, {Connections: 1025}, {Retries: -1}, {Retries: 5}} {
		if _, err := client.Dial("localhost:1", nil, o); attest.CodeOf(err) != attest.CodeUsage {
			t.Errorf("%+v: error is %v", o, err)
		}
	}
}
