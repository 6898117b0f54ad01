package admission_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/internal/broker/admission"
)

// room is a door in use. Its handshake is one byte.
type room struct {
	address string
	conns   chan *admission.Conn // that have shaken hands
	looks   chan time.Time
	now     atomic.Int64 // Unix
}

type info struct{ credentials.CommonAuthInfo }

func (info) AuthType() string { return "none" }

func open(t *testing.T, change func(*admission.Options)) *room {
	t.Helper()
	r := &room{conns: make(chan *admission.Conn, 100), looks: make(chan time.Time)}
	r.now.Store(1e9)
	o := admission.Options{
		Pool:  admission.NewPool(admission.PoolOptions{Common: 2, Proved: 2}),
		Begin: time.Hour, Idle: time.Hour, Drain: time.Minute,
		Now:   func() time.Time { return time.Unix(r.now.Load(), 0) },
		Looks: r.looks,
		Shake: func(c *admission.Conn) (net.Conn, credentials.AuthInfo, error) {
			c.Pace(time.Minute)
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return nil, nil, err
			}
			c.Unpace()
			r.conns <- c
			return c, info{}, nil
		},
		Server: func(_ credentials.AuthInfo, given []grpc.ServerOption) *grpc.Server {
			rpc := grpc.NewServer(append(given, grpc.WaitForHandlers(true))...)
			grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
			return rpc
		},
	}
	if change != nil {
		change(&o)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := (&admission.Door{Options: o}).Serve(ctx, l)
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// enter is a client that has shaken hands, and its connection at the door.
func (r *room) enter(t *testing.T) (grpc_health_v1.HealthClient, *grpc.ClientConn, *admission.Conn) {
	t.Helper()
	rpc, err := grpc.NewClient("passthrough:///"+r.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				_, err = conn.Write([]byte{1})
			}
			return conn, err
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rpc.Close() })
	rpc.Connect()
	return grpc_health_v1.NewHealthClient(rpc), rpc, <-r.conns
}

func check(t *testing.T, c grpc_health_v1.HealthClient) error {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := c.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return err
}

// gone waits until a connection is closed.
func gone(t *testing.T, rpc *grpc.ClientConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for s := rpc.GetState(); s == connectivity.Ready; s = rpc.GetState() {
		if !rpc.WaitForStateChange(ctx, s) {
			t.Fatal("the connection stays open")
		}
	}
}

func watch(t *testing.T, c grpc_health_v1.HealthClient) grpc.ServerStreamingClient[grpc_health_v1.HealthCheckResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	w, err := c.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestAConnectionEndsByTheDoorsClock(t *testing.T) {
	r := open(t, nil)
	client, rpc, conn := r.enter(t)
	conn.Until(time.Unix(1e9+3600, 0))
	conn.Until(time.Unix(1e9+7200, 0)) // the first counts
	conn.Until(time.Time{})            // none
	done := conn.Call()
	if err := check(t, client); err != nil {
		t.Fatal(err)
	}
	r.now.Store(1e9 + 3599)
	r.looks <- time.Time{}
	r.looks <- time.Time{} // the first look is over
	if err := check(t, client); err != nil || conn.Ended(time.Unix(1e9+3599, 0)) {
		t.Errorf("a second before its end: %v", err)
	}
	r.now.Store(1e9 + 3600)
	r.looks <- time.Time{}
	gone(t, rpc) // told to go, although a call lets it live
	done()
}

// TestHealthDoesNotLetAConnectionLive, whether it has proved itself or not.
func TestHealthDoesNotLetAConnectionLive(t *testing.T) {
	for name, proved := range map[string]bool{"stranger": false, "proved": true} {
		r := open(t, func(o *admission.Options) {
			o.Drain = 10 * time.Millisecond
			if proved {
				o.Idle = 300 * time.Millisecond
			} else {
				o.Begin = 300 * time.Millisecond
			}
		})
		client, rpc, conn := r.enter(t)
		if proved {
			conn.Prove()
		}
		w := watch(t, client)
		gone(t, rpc)
		if _, err := w.Recv(); err == nil {
			t.Errorf("%s: the watch goes on", name)
		}
	}
}

func TestACallLetsAConnectionLiveUntilItIsDone(t *testing.T) {
	r := open(t, func(o *admission.Options) { o.Begin = 400 * time.Millisecond })
	client, rpc, conn := r.enter(t)
	done := conn.Call()
	other, _, _ := r.enter(t)
	w := watch(t, other)
	if _, err := w.Recv(); err == nil { // until the other one, which came later, is closed
		t.Error("the other one stays")
	}
	if err := check(t, client); err != nil {
		t.Errorf("in the call: %v", err)
	}
	done()
	done()
	gone(t, rpc)
}

func TestStrangersGiveWayAndProvedPeersDoNot(t *testing.T) {
	r := open(t, nil)
	client, _, conn := r.enter(t)
	conn.Prove()
	var closed atomic.Int64
	all := make(chan struct{})
	const strangers = 20
	for range strangers {
		raw, err := net.Dial("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		go func() {
			_, err := raw.Read(make([]byte, 1))
			if err != nil && closed.Add(1) == strangers-2 {
				close(all)
			}
		}()
	}
	select {
	case <-all:
	case <-time.After(30 * time.Second):
		t.Fatalf("%d strangers were closed", closed.Load())
	}
	if err := check(t, client); err != nil {
		t.Error(err)
	}
}

// TestOwnTimeIsNotThePeers: the pace counts what the connection waits for, not what happens in between.
func TestOwnTimeIsNotThePeers(t *testing.T) {
	slow := make(chan error, 1)
	r := open(t, func(o *admission.Options) {
		o.Shake = func(c *admission.Conn) (net.Conn, credentials.AuthInfo, error) {
			c.Pace(500 * time.Millisecond)
			_, err := io.ReadFull(c, make([]byte, 1))
			if err == nil {
				<-time.After(time.Second) // this side works
				_, err = io.ReadFull(c, make([]byte, 1))
			}
			if err == nil {
				_, err = c.Read(make([]byte, 1)) // which does not come
			}
			slow <- err
			return nil, nil, err
		}
	})
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write([]byte{1, 2})
	var timeout net.Error
	if err := <-slow; !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("it ended with: %v", err)
	}
}

func TestCallsInFlightMayFinishWhenTheDoorCloses(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	o := admission.Options{
		Pool:  admission.NewPool(admission.PoolOptions{Common: 10, Proved: 1}),
		Begin: time.Hour, Idle: time.Hour, Drain: time.Minute, Now: time.Now,
		Shake: func(c *admission.Conn) (net.Conn, credentials.AuthInfo, error) { return c, info{}, nil },
		Server: func(_ credentials.AuthInfo, given []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(given, grpc.WaitForHandlers(true), grpc.UnknownServiceHandler(
				func(any, grpc.ServerStream) error {
					close(entered)
					<-leave
					return status.Error(codes.AlreadyExists, "")
				}))...)
		},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan bool, 1)
	go func() {
		ok, _ := (&admission.Door{Options: o}).Serve(ctx, l)
		drained <- ok
	}()
	rpc, err := grpc.NewClient("passthrough:///"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer rpc.Close()
	answer := make(chan error, 1)
	go func() { answer <- check(t, grpc_health_v1.NewHealthClient(rpc)) }()
	<-entered
	cancel()
	for { // until the port is closed
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	close(leave)
	if err := <-answer; status.Code(err) != codes.AlreadyExists {
		t.Errorf("the call in flight: %v", err)
	}
	if !<-drained {
		t.Error("it was cut off")
	}
}
