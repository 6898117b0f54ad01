package admission

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/internal/fault"
	"github.com/sesame-init/sesame/internal/retry"
)

// Door serves gRPC on the connections of a listener. Each connection has a server of its own, so that each can be
// told to go (GOAWAY) on its own. It serves one listener.
type Door struct{ Options }

// Options of a [Door]. All are needed, except Opened, Evicted and Looks.
type Options struct {
	Pool *Pool
	// Shake is the handshake of a connection. What it finds goes to Server, and to the calls as
	// [google.golang.org/grpc/peer.Peer]'s AuthInfo.
	Shake func(c *Conn) (net.Conn, credentials.AuthInfo, error)
	// Server makes the server of one connection. It must be made with the options that are given: the connection's
	// credentials, and interceptors by which a panic ends the program, since the state that it leaves is anyone's guess.
	Server func(info credentials.AuthInfo, given []grpc.ServerOption) *grpc.Server
	Begin  time.Duration // from the handshake, or the end of a call, to the next call of a peer that has proved nothing
	Idle   time.Duration // from the handshake, or the end of a call, to the next call of a peer that has proved itself
	Drain  time.Duration // for calls in flight on a connection that is told to go
	// Now is the clock for what [Conn.Until] says. It need not run as the system's does.
	Now     func() time.Time
	Opened  func(n float64) // is told of connections that come (1) and go (-1)
	Evicted func()          // is told of a connection that has lost its place
	// Looks are the moments at which the door looks which connections have reached their end. Default: every 10 s.
	Looks <-chan time.Time
}

const lookInterval = 10 * time.Second

// Serve answers until ctx ends, and closes the listener. Then calls in flight may finish within the time to drain; it
// reports whether they did. It returns when all handlers have.
func (d *Door) Serve(ctx context.Context, l net.Listener) (drained bool, err error) {
	s := &doorRun{door: d, open: map[*Conn]struct{}{}}
	failed := make(chan error, 1)
	fault.Go(func() { failed <- s.accept(l) })
	looks := d.Looks
	if looks == nil {
		tick := time.NewTicker(lookInterval)
		defer tick.Stop()
		looks = tick.C
	}
	for err == nil && ctx.Err() == nil {
		select {
		case err = <-failed:
		case <-ctx.Done():
		case <-looks:
			s.sweep()
		}
	}
	_ = l.Close()
	if err != nil {
		s.each((*Conn).cut)
		s.served.Wait()
		return false, err
	}
	<-failed
	s.late.Store(false) // of connections that had to go before
	s.each((*Conn).Leave)
	s.served.Wait()
	return !s.late.Load(), nil
}

// doorRun is one run of a door.
type doorRun struct {
	door   *Door
	served sync.WaitGroup
	late   atomic.Bool // a connection is late

	mu   sync.Mutex
	open map[*Conn]struct{}
}

func (s *doorRun) accept(l net.Listener) error {
	pauses := retry.Pauses{First: 5 * time.Millisecond, Longest: time.Second}
	for {
		raw, err := l.Accept()
		switch {
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED),
			errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
			time.Sleep(pauses.Next())
			continue
		case err != nil:
			return err
		}
		pauses.Reset()
		c := &Conn{Conn: raw, door: s.door, closed: make(chan struct{})}
		s.mu.Lock()
		s.open[c] = struct{}{}
		s.mu.Unlock()
		c.place = s.door.Pool.Enter(addressOf(raw.RemoteAddr()), func() {
			if s.door.Evicted != nil {
				s.door.Evicted()
			}
			c.cut()
		})
		s.served.Go(fault.Guard(func() { s.serve(c) }))
	}
}

func (s *doorRun) serve(c *Conn) {
	if s.door.Opened != nil {
		s.door.Opened(1)
		defer s.door.Opened(-1)
	}
	defer func() {
		c.cut()
		c.place.Leave()
		c.mu.Lock()
		if c.late {
			s.late.Store(true)
		}
		c.mu.Unlock()
		s.mu.Lock()
		delete(s.open, c)
		s.mu.Unlock()
	}()
	shaken, info, err := s.door.Shake(c)
	if err != nil {
		return
	}
	rpc := s.door.Server(info, []grpc.ServerOption{
		grpc.Creds(&doneHandshake{conn: shaken, info: info}), grpc.ChainUnaryInterceptor(guardUnary), grpc.ChainStreamInterceptor(guardStream),
	})
	if !c.start(rpc) {
		rpc.Stop()
		return
	}
	_ = rpc.Serve(&single{conn: c, done: make(chan struct{})})
	<-c.closed
	rpc.Stop()
}

func guardUnary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	defer fault.Exit()
	return handle(ctx, request)
}

func guardStream(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	defer fault.Exit()
	return handle(service, stream)
}

func (s *doorRun) each(do func(*Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		do(c)
	}
}

func (s *doorRun) sweep() {
	now := s.door.Now()
	s.each(func(c *Conn) {
		if c.Ended(now) {
			c.Leave()
		}
	})
}
