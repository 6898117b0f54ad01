package broker

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/fault"
)

const (
	maxRequest = 96 << 10  // bytes of a message: evidence and the names of secrets
	maxStreams = 16        // calls at once on a connection of the legacy wire; on one that begins with a session 1
	maxHeaders = 8 << 10   // bytes of a call's headers
	buffer     = 4 << 10   // bytes of a connection's buffers for reading and for writing
	window     = 65535     // bytes that a peer may send before they are read: the least that HTTP/2 has
	maxLife    = time.Hour // of a connection

	// patience is for how long a session waits for its evidence to be verified before it is told to come later.
	patience = 2 * time.Second
	// retryAfter is what it is told then.
	retryAfter = 500 * time.Millisecond
)

// thrift are the options that bound what a connection can make the broker keep.
func thrift() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ReadBufferSize(buffer),
		grpc.WriteBufferSize(buffer),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(window),
	}
}

var (
	errSilent = errors.New("the peer takes too long")
	errSlow   = errors.New("the broker takes too long")
	errBusy   = errors.New("too many sessions at once")
)

// timedStream is the stream of a session with two clocks, as in chess. One runs while the broker waits for its peer, the
// other one while the broker works: what one takes does not count against the other. While the broker verifies and
// decides, the session has one of the places for that.
type timedStream struct {
	session.Stream
	server *Server
	from   *connection
	ctx    context.Context
	cancel context.CancelCauseFunc
	peer   time.Duration // that the peer has left
	own    time.Duration // that the broker has left
	turn   *time.Timer   // ends the broker's time
	began  time.Time     // the broker's turn

	call   func() // ends what lets the connection live; nil before the greeting
	placed bool
	busy   bool // no place was free
}

func (s *Server) clocked(raw session.Stream, from *connection) *timedStream {
	most := time.Duration(s.settings.Limits.Session)
	c := &timedStream{Stream: raw, server: s, from: from, peer: most, own: most, began: time.Now()}
	c.ctx, c.cancel = context.WithCancelCause(raw.Context())
	c.turn = time.AfterFunc(c.own, fault.Guard(func() { c.cancel(errSlow) }))
	return c
}

// end ends the clocks.
func (c *timedStream) end() {
	c.turn.Stop()
	c.yield()
	c.cancel(context.Canceled)
	if c.call != nil {
		c.call()
	}
}

// Context implements [grpc.ServerStream].
func (c *timedStream) Context() context.Context { return c.ctx }

// theirs runs what waits for the peer, within the time that the peer has left.
func (c *timedStream) theirs(wait func(left time.Duration) error) error {
	c.turn.Stop()
	start := time.Now()
	c.own -= start.Sub(c.began)
	err := wait(c.peer)
	c.began = time.Now()
	c.peer -= c.began.Sub(start)
	c.turn.Reset(c.own)
	return err
}

// Recv implements [session.Stream]. A read that is given up ends when the call's handler has returned.
func (c *timedStream) Recv() (*sessionpb.ClientMessage, error) {
	type result struct {
		message *sessionpb.ClientMessage
		err     error
	}
	c.yield()
	var r result
	err := c.theirs(func(left time.Duration) error {
		read := make(chan result, 1)
		fault.Go(func() {
			message, err := c.Stream.Recv()
			read <- result{message, err}
		})
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case r = <-read:
			return r.err
		case <-timer.C:
			return errSilent
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	})
	switch {
	case err != nil:
		return nil, err
	case c.call == nil:
		c.call = c.from.life.Call()
		return r.message, nil
	}
	return r.message, c.place()
}

// Send implements [session.Stream]. A peer that does not take what it is sent loses its connection.
func (c *timedStream) Send(m *sessionpb.BrokerMessage) error {
	return c.theirs(func(left time.Duration) error {
		timer := time.AfterFunc(left, fault.Guard(func() { _ = c.from.life.Close() }))
		defer timer.Stop()
		return c.Stream.Send(m)
	})
}

// within bounds the time that the peer has left.
func (c *timedStream) within(most time.Duration) { c.peer = min(c.peer, most) }

// place waits for a place to verify and decide.
func (c *timedStream) place() error {
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	select {
	case c.server.sessions <- struct{}{}:
		c.placed = true
		return nil
	case <-ctx.Done():
		c.busy = c.ctx.Err() == nil
		return errBusy
	}
}

// yield gives the place back.
func (c *timedStream) yield() {
	if c.placed {
		<-c.server.sessions
		c.placed = false
	}
}
