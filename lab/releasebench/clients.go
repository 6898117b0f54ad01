package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// load makes releases releases in workers loops and prints what it measured. kind "fetch" is the real client, "plain" the
// client of the reference.
func load(ctx context.Context, dir, kind, wire, address string, releases, workers int) error {
	platform, err := softsgx.Load(filepath.Join(dir, "platform"))
	if err != nil {
		return err
	}
	var later atomic.Int64
	one, err := client(platform, dir, kind, wire, address, &later)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var r report
	var failed error
	next := make(chan struct{}, releases)
	for range releases {
		next <- struct{}{}
	}
	close(next)
	for range workers {
		wg.Go(func() {
			for range next {
				start := time.Now()
				err := one(ctx)
				mu.Lock()
				if err != nil {
					failed = err
				} else {
					r.Latencies = append(r.Latencies, time.Since(start))
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	r.Later = int(later.Load())
	return json.NewEncoder(os.Stdout).Encode(r)
}

// counter counts the lines of a log that say that a broker is busy.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "too many sessions") {
		c.n.Add(1)
	}
	return len(line), nil
}

// client makes the function that gets one secret.
func client(platform *softsgx.Platform, dir, kind, wire, address string, later *atomic.Int64) (
	func(context.Context) error, error) {
	attester := platform.Attester(workloadEnclave())
	if kind == "plain" && wire == "session" {
		quote, err := attester.Evidence(context.Background(), attest.ReportData{})
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return plainSession(ctx, address, quote.Raw) }, nil
	}
	source, _, err := collateralSource(dir)
	if err != nil {
		return nil, err
	}
	log := logrus.New()
	log.SetOutput(counter{later})
	body := brokerEnclave()
	c, err := grpcratls.New(grpcratls.Config{
		Servers: []string{address}, Protocol: grpcratls.Protocol(wire), Attester: attester,
		Verifier: dcap.NewVerifier(dcap.Config{Roots: []*x509.Certificate{platform.RootCA()}, Source: source}),
		Policy:   &policy.Policy{SGX: []policy.SGX{{MREnclave: body.MREnclave[:]}}},
		Logger:   log,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		got, err := c.Fetch(ctx, []string{secretName})
		if err == nil && string(got[secretName].Expose()) != string(secret) {
			err = fmt.Errorf("another secret")
		}
		return err
	}, nil
}

// plainSession is the exchange of a session, with nothing proved.
func plainSession(ctx context.Context, address string, quote []byte) error {
	key, err := session.NewKey(time.Now())
	if err != nil {
		return err
	}
	config := session.ClientTLS(&key, "127.0.0.1")
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := sessionpb.NewKeyBrokerClient(conn).Release(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Hello{
		Hello: &sessionpb.Hello{Nonce: make([]byte, 32)}}}); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&sessionpb.ClientMessage{Message: &sessionpb.ClientMessage_Request{Request: &sessionpb.Request{
		Evidence: &sessionpb.Evidence{Type: "sgx", Raw: quote, Size: 1}, Names: []string{secretName}}}}); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}
