package broker

import (
	"container/list"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sesame-init/sesame/broker/policy"
)

// maxPeers bounds the addresses that are remembered. The one that was seen longest ago is forgotten first, unless it
// has connections.
const maxPeers = 1 << 14

// admission is a listener that bounds connections: all of them, by waiting, and those of one address, by closing the
// ones that are too many or come too fast. It tells addresses apart by IP: behind a gateway all peers are one.
type admission struct {
	net.Listener
	limits  policy.Limits
	metrics *Metrics
	places  chan struct{}
	done    chan struct{}
	once    sync.Once

	mu    sync.Mutex
	peers map[string]*list.Element // of *visitor
	seen  *list.List               // the latest first
}

type visitor struct {
	address string
	open    int
	rate    *rate.Limiter
}

func newAdmission(l net.Listener, limits policy.Limits, m *Metrics) *admission {
	return &admission{
		Listener: l, limits: limits, metrics: m, places: make(chan struct{}, limits.Connections),
		done: make(chan struct{}), peers: map[string]*list.Element{}, seen: list.New(),
	}
}

// Accept implements [net.Listener].
func (a *admission) Accept() (net.Conn, error) {
	select {
	case a.places <- struct{}{}:
	case <-a.done:
		return nil, net.ErrClosed
	}
	for {
		conn, err := a.Listener.Accept()
		if err != nil {
			<-a.places
			return nil, err
		}
		address, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			address = conn.RemoteAddr().String()
		}
		if limit := a.enter(address, time.Now()); limit != "" {
			a.metrics.overload(limit)
			_ = conn.Close()
			continue
		}
		a.metrics.connections(1)
		return &admitted{Conn: conn, leave: func() {
			a.leave(address)
			a.metrics.connections(-1)
			<-a.places
		}}, nil
	}
}

// enter counts a connection of an address, or says which limit it exceeds.
func (a *admission) enter(address string, now time.Time) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.peers[address]
	if e == nil {
		a.forget()
		e = a.seen.PushFront(&visitor{
			address: address, rate: rate.NewLimiter(rate.Limit(a.limits.Rate), a.limits.Burst),
		})
		a.peers[address] = e
	} else {
		a.seen.MoveToFront(e)
	}
	v := e.Value.(*visitor)
	switch {
	case v.open >= a.limits.PerPeer:
		return "per_peer"
	case !v.rate.AllowN(now, 1):
		return "rate"
	}
	v.open++
	return ""
}

// forget makes room for an address.
func (a *admission) forget() {
	for e := a.seen.Back(); e != nil && a.seen.Len() >= maxPeers; {
		v, before := e.Value.(*visitor), e.Prev()
		if v.open == 0 {
			a.seen.Remove(e)
			delete(a.peers, v.address)
		}
		e = before
	}
}

func (a *admission) leave(address string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.peers[address].Value.(*visitor).open--
}

// Close implements [net.Listener].
func (a *admission) Close() error {
	a.once.Do(func() { close(a.done) })
	return a.Listener.Close()
}

// admitted is a connection that has a place.
type admitted struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close implements [net.Conn].
func (c *admitted) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.leave)
	return err
}
