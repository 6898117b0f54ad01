package client

import (
	"context"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/balancer/leastrequest"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/stats"

	"github.com/sesame-init/sesame/attest"
)

// Options of a [Client]. The zero value is one connection and no second try.
type Options struct {
	// Connections to spread requests over, at most 1024; 0 is 1. gRPC sends all requests over one connection, and a
	// Kubernetes service or another balancer of TCP chooses a pod once a connection: with one connection one pod does
	// all the work, however many there are. Each request goes to the less busy of two connections chosen at random.
	Connections int
	// Retries is how often a request that found no server, or whose server went away, is tried again: 0 to 4 times,
	// after a pause that grows from 0.1 s to 2 s. A prediction changes nothing, so that it may be computed twice.
	Retries int
}

const (
	maxConnections = 1024
	maxRetries     = 4 // gRPC makes five attempts at most
)

func (o Options) connections() int { return max(o.Connections, 1) }

func (o Options) check() error {
	if o.Connections < 0 || o.Connections > maxConnections || o.Retries < 0 || o.Retries > maxRetries {
		return attest.Errorf(attest.CodeUsage, "connecting", "", "%d connections and %d retries, at most %d and %d are possible",
			o.Connections, o.Retries, maxConnections, maxRetries)
	}
	return nil
}

// serviceConfig is what gRPC is told about balancing and retries (gRFC A6 and A48).
func (o Options) serviceConfig() string {
	balancing := `{"pick_first": {}}`
	if o.connections() > 1 {
		balancing = `{"` + leastrequest.Name + `": {"choiceCount": 2}}`
	}
	config := `{"loadBalancingConfig": [` + balancing + `]`
	if o.Retries > 0 {
		config += fmt.Sprintf(`, "methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": %d, "initialBackoff": "0.1s",
			"maxBackoff": "2s", "backoffMultiplier": 3, "retryableStatusCodes": ["UNAVAILABLE"]}}]`, 1+o.Retries)
	}
	return config + "}"
}

// spread resolves one server to as many addresses as there shall be connections. gRPC takes equal addresses for one,
// so each has a number behind it that dialSpread takes off.
type spread struct {
	server      string
	connections int
}

const (
	scheme    = "sesame-spread"
	numbering = "#"
)

// Build implements [resolver.Builder].
func (s spread) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	var state resolver.State
	for i := range s.connections {
		address := resolver.Address{Addr: fmt.Sprintf("%s%s%d", s.server, numbering, i)}
		state.Addresses = append(state.Addresses, address)
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{address}})
	}
	return s, cc.UpdateState(state)
}

// Scheme implements [resolver.Builder].
func (spread) Scheme() string { return scheme }

// ResolveNow implements [resolver.Resolver]: there is nothing to ask. Names are looked up for each connection.
func (spread) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements [resolver.Resolver].
func (spread) Close() {}

func dialSpread(ctx context.Context, numbered string) (net.Conn, error) {
	address, _, _ := strings.Cut(numbered, numbering)
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}

// attemptCounter counts every try of every request.
type attemptCounter Client

// TagRPC implements [stats.Handler].
func (*attemptCounter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements [stats.Handler].
func (a *attemptCounter) HandleRPC(_ context.Context, s stats.RPCStats) {
	if _, begins := s.(*stats.Begin); begins {
		a.attempts.Add(1)
	}
}

// TagConn implements [stats.Handler].
func (*attemptCounter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements [stats.Handler].
func (*attemptCounter) HandleConn(context.Context, stats.ConnStats) {}
