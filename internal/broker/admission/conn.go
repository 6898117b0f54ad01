package admission

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/sesame-init/sesame/internal/fault"
)

// Conn is a connection that has a place.
type Conn struct {
	net.Conn
	door  *Door
	place *Place

	once   sync.Once
	closed chan struct{}

	// While the pace is set, by the one goroutine that shakes hands:
	paced bool
	left  time.Duration

	mu     sync.Mutex
	rpc    *grpc.Server
	going  bool
	late   bool // the time to drain was over before its calls were
	proved bool
	calls  int
	idle   *time.Timer
	until  time.Time
}

// Pace bounds the time that the connection waits for its peer from now on, in all. What this side takes for its own
// work does not count. [Conn.Unpace] ends it.
func (c *Conn) Pace(most time.Duration) { c.paced, c.left = true, most }

// Unpace ends the bound of [Conn.Pace].
func (c *Conn) Unpace() {
	c.paced = false
	_ = c.SetDeadline(time.Time{})
}

// Read implements [net.Conn].
func (c *Conn) Read(b []byte) (int, error) { return c.pace(c.SetReadDeadline, c.Conn.Read, b) }

// Write implements [net.Conn].
func (c *Conn) Write(b []byte) (int, error) { return c.pace(c.SetWriteDeadline, c.Conn.Write, b) }

func (c *Conn) pace(deadline func(time.Time) error, do func([]byte) (int, error), b []byte) (int, error) {
	if !c.paced {
		return do(b)
	}
	start := time.Now()
	if err := deadline(start.Add(c.left)); err != nil {
		return 0, err
	}
	n, err := do(b)
	c.left -= time.Since(start)
	return n, err
}

// Prove says that the peer has proved itself. It has a place that no other peer can take from it, unless there are too
// many such peers.
func (c *Conn) Prove() {
	proved := c.place.Prove()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proved = c.proved || proved
	c.rest()
}

// Call says that a call has begun which lets the connection live, until done is called.
func (c *Conn) Call() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.rest()
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls--
		c.rest()
	})
}

// rest sets the timer of a connection without calls. The lock is held.
func (c *Conn) rest() {
	select {
	case <-c.closed:
		return
	default:
	}
	switch {
	case c.idle == nil: // still shaking hands
	case c.calls > 0:
		c.idle.Stop()
	case c.proved:
		c.idle.Reset(c.door.Idle)
	default:
		c.idle.Reset(c.door.Begin)
	}
}

// rested ends a connection that had no call for too long.
func (c *Conn) rested() {
	c.mu.Lock()
	calls, proved := c.calls, c.proved
	c.mu.Unlock()
	switch {
	case calls > 0:
	case proved:
		c.Leave()
	default:
		c.cut()
	}
}

// Until says when the connection must end, by the door's clock. Of several moments the first counts; the zero time is
// none.
func (c *Conn) Until(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !t.IsZero() && (c.until.IsZero() || t.Before(c.until)) {
		c.until = t
	}
}

// Ended reports whether the connection's end has come.
func (c *Conn) Ended(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.until.IsZero() && !now.Before(c.until)
}

// Leave asks the peer to go: it may finish its calls within the drain time, and begin no new ones. Leave does not wait.
func (c *Conn) Leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.going {
		return
	}
	c.going = true
	if c.rpc == nil {
		fault.Go(c.cut)
		return
	}
	timer := time.AfterFunc(c.door.Drain, fault.Guard(func() {
		c.mu.Lock()
		c.late = true
		c.mu.Unlock()
		c.cut()
	}))
	fault.Go(func() {
		c.rpc.GracefulStop()
		timer.Stop()
		c.cut()
	})
}

// start says by which server the connection is served, and reports whether it shall be.
func (c *Conn) start(rpc *grpc.Server) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.going {
		return false
	}
	c.rpc = rpc
	c.idle = time.AfterFunc(time.Hour, fault.Guard(c.rested))
	c.rest()
	return true
}

// Close implements [net.Conn].
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		close(c.closed)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.idle != nil {
			c.idle.Stop()
		}
	})
	return err
}

func (c *Conn) cut() { _ = c.Close() }

// single is a listener of one connection, and ends with it.
type single struct {
	conn *Conn
	once sync.Once
	done chan struct{}
	mu   sync.Mutex
	gone bool // the connection was accepted
}

// Accept implements [net.Listener].
func (s *single) Accept() (net.Conn, error) {
	s.mu.Lock()
	first := !s.gone
	s.gone = true
	s.mu.Unlock()
	if first {
		return s.conn, nil
	}
	select {
	case <-s.done:
	case <-s.conn.closed:
	}
	return nil, net.ErrClosed
}

// Close implements [net.Listener].
func (s *single) Close() error {
	s.once.Do(func() { close(s.done) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone { // the server has stopped before it began
		s.gone = true
		s.conn.cut()
	}
	return nil
}

// Addr implements [net.Listener].
func (s *single) Addr() net.Addr { return s.conn.LocalAddr() }

// doneHandshake are the credentials of a connection whose handshake is over.
type doneHandshake struct {
	conn net.Conn
	info credentials.AuthInfo
}

var errNotAClient = errors.New("these are credentials of a server")

// ServerHandshake implements [credentials.TransportCredentials].
func (p *doneHandshake) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return p.conn, p.info, nil
}

// ClientHandshake implements [credentials.TransportCredentials].
func (*doneHandshake) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errNotAClient
}

// Info implements [credentials.TransportCredentials].
func (*doneHandshake) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements [credentials.TransportCredentials].
func (p *doneHandshake) Clone() credentials.TransportCredentials { return p }

// OverrideServerName implements [credentials.TransportCredentials].
func (*doneHandshake) OverrideServerName(string) error { return errNotAClient }
