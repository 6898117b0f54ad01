// Package admission decides which connections a server keeps, and for how long.
//
// A [Pool] counts places. As long as there are places anyone may have one, and as many as it likes. When they run out,
// the address that holds most loses one. A peer that has proved itself moves to places that no other peer can touch.
// A [Door] serves gRPC on the connections that have a place, and ends each of them on its own.
package admission

import (
	"cmp"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Pool counts the places of a server. It is safe for concurrent use. Make it with [NewPool].
type Pool struct {
	options PoolOptions

	mu     sync.Mutex
	common node
	proved int
}

// PoolOptions configure a [Pool].
type PoolOptions struct {
	Common int // places of peers that have proved nothing, at least 1
	Proved int // places of peers that have proved themselves
	// Pick chooses one of n, 0 to n-1, at random. Default: a generator that the system seeds.
	Pick func(n int) int
}

// NewPool makes a pool.
func NewPool(o PoolOptions) *Pool {
	if o.Pick == nil {
		o.Pick = rand.IntN
	}
	return &Pool{options: o}
}

// Place is one connection's. Get it by [Pool.Enter] and give it back by [Place.Leave].
type Place struct {
	pool   *Pool
	path   []netip.Prefix
	evict  func()
	common bool // else it is proved, or given back
	proved bool
}

// node is a network with the places that it holds: in networks below it, or, at the end of a path, its own.
type node struct {
	prefix netip.Prefix
	held   int
	below  map[netip.Prefix]*node
	places []*Place
}

// Enter gives a place to a connection of an address. If there are too many, one of the network that holds most is
// chosen, at random if several hold as many, and its evict is called. It may be the one that has just come. evict
// must not wait.
//
// IPv4 addresses count one by one, also in their IPv6 form. IPv6 counts by /48, within it by /56, within it by /64:
// these are what one customer gets.
func (p *Pool) Enter(address netip.Addr, evict func()) *Place {
	place := &Place{pool: p, path: networks(address), evict: evict, common: true}
	p.mu.Lock()
	p.common.add(place, 0)
	var victim *Place
	if p.common.held > p.options.Common {
		victim = p.common.fullest(p.options.Pick)
		p.common.remove(victim, 0)
		victim.common = false
	}
	p.mu.Unlock()
	if victim != nil {
		victim.evict()
	}
	return place
}

// Prove moves a place to those of peers that have proved themselves, while there are any, and reports whether the place
// is there. Else the place is as it was.
func (p *Place) Prove() bool {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if p.common && p.pool.proved < p.pool.options.Proved {
		p.pool.common.remove(p, 0)
		p.common, p.proved = false, true
		p.pool.proved++
	}
	return p.proved
}

// Leave gives the place back. A second call does nothing.
func (p *Place) Leave() {
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	switch {
	case p.common:
		p.pool.common.remove(p, 0)
	case p.proved:
		p.pool.proved--
	}
	p.common, p.proved = false, false
}

// networks are those that an address counts to, the widest first.
func networks(a netip.Addr) []netip.Prefix {
	a = a.Unmap().WithZone("")
	sizes := []int{48, 56, 64}
	if !a.Is6() {
		sizes = []int{a.BitLen()}
	}
	path := make([]netip.Prefix, len(sizes))
	for i, bits := range sizes {
		path[i], _ = a.Prefix(bits) // fails for the zero address alone, which is one network
	}
	return path
}

func (n *node) add(p *Place, depth int) {
	n.held++
	if depth == len(p.path) {
		n.places = append(n.places, p)
		return
	}
	if n.below == nil {
		n.below = map[netip.Prefix]*node{}
	}
	next := n.below[p.path[depth]]
	if next == nil {
		next = &node{prefix: p.path[depth]}
		n.below[next.prefix] = next
	}
	next.add(p, depth+1)
}

func (n *node) remove(p *Place, depth int) {
	n.held--
	if depth == len(p.path) {
		i := slices.Index(n.places, p)
		n.places = slices.Delete(n.places, i, i+1)
		return
	}
	next := n.below[p.path[depth]]
	if next.remove(p, depth+1); next.held == 0 {
		delete(n.below, next.prefix)
	}
}

// fullest is a place of the network that holds most, there of the network that holds most, and so on.
func (n *node) fullest(pick func(int) int) *Place {
	if len(n.below) == 0 {
		return n.places[pick(len(n.places))]
	}
	var most []*node
	for _, next := range n.below {
		switch {
		case len(most) == 0 || next.held > most[0].held:
			most = append(most[:0], next)
		case next.held == most[0].held:
			most = append(most, next)
		}
	}
	// The order of a map is no random source that could be injected.
	slices.SortFunc(most, func(a, b *node) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	return most[pick(len(most))].fullest(pick)
}

// addressOf is the IP of a connection's peer, the zero address if it has none.
func addressOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}
