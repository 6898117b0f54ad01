package admission_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sesame-init/sesame/internal/broker/admission"
)

// crowd keeps what a pool has evicted.
type crowd struct {
	pool    *admission.Pool
	evicted map[string]int
	open    map[string][]*admission.Place
}

func newCrowd(common, proved int, pick func(int) int) *crowd {
	return &crowd{
		pool:    admission.NewPool(admission.PoolOptions{Common: common, Proved: proved, Pick: pick}),
		evicted: map[string]int{}, open: map[string][]*admission.Place{},
	}
}

func (c *crowd) enter(address string) *admission.Place {
	p := c.pool.Enter(netip.MustParseAddr(address), func() { c.evicted[address]++ })
	c.open[address] = append(c.open[address], p)
	return p
}

func seeded() func(int) int { return rand.New(rand.NewPCG(1, 2)).IntN }

func TestNoAddressIsLimitedWhilePlacesAreFree(t *testing.T) {
	c := newCrowd(1000, 0, seeded())
	for range 999 {
		c.enter("192.0.2.1")
	}
	c.enter("192.0.2.2")
	if len(c.evicted) != 0 {
		t.Errorf("evicted: %v", c.evicted)
	}
}

func TestTheAddressThatHoldsMostGivesWay(t *testing.T) {
	c := newCrowd(100, 0, seeded())
	for range 60 {
		c.enter("192.0.2.1")
	}
	for range 39 {
		c.enter("::ffff:192.0.2.2") // IPv4 in IPv6's form
	}
	c.enter("192.0.2.3")
	for range 2000 {
		c.enter("192.0.2.1")
		c.enter("192.0.2.2")
	}
	if n := c.evicted["192.0.2.3"]; n != 0 {
		t.Errorf("the address with one connection has lost %d", n)
	}
	if n := c.evicted["192.0.2.1"] + c.evicted["192.0.2.2"] + c.evicted["::ffff:192.0.2.2"]; n != 4000 {
		t.Errorf("%d were evicted, want 4000", n)
	}
	first := c.pool.Enter(netip.MustParseAddr("192.0.2.4"), func() { t.Error("it was evicted") })
	first.Leave()
	first.Leave() // twice must not free two places
	before := c.evicted["192.0.2.1"] + c.evicted["192.0.2.2"]
	c.enter("192.0.2.5") // the place that 192.0.2.4 has left
	if after := c.evicted["192.0.2.1"] + c.evicted["192.0.2.2"]; after != before {
		t.Error("a place that was given back is not free")
	}
	c.enter("192.0.2.6")
	if after := c.evicted["192.0.2.1"] + c.evicted["192.0.2.2"]; after != before+1 {
		t.Error("a place that was given back twice counts twice")
	}
}

// TestTheVictimOfAnAddressIsAnyOfItsConnections: behind the attackers' address the honest peer may be the oldest one,
// and the newest.
func TestTheVictimOfAnAddressIsAnyOfItsConnections(t *testing.T) {
	const size = 7
	address := netip.MustParseAddr("192.0.2.1")
	var times [size + 1]int
	for seed := range uint64(800) {
		pool := admission.NewPool(admission.PoolOptions{Common: size, Pick: rand.New(rand.NewPCG(seed, 1)).IntN})
		for i := range size + 1 {
			pool.Enter(address, func() { times[i]++ })
		}
	}
	for i, n := range times {
		if n < 50 || n > 150 { // of 800 in eight
			t.Errorf("connection %d was evicted %d times", i, n)
		}
	}
}

// TestOneCustomersNetworkCountsAsOne: 2,000 networks of /64 in one /48 hold one place each, as does an honest peer of
// another /48.
func TestOneCustomersNetworkCountsAsOne(t *testing.T) {
	const size = 1024
	c := newCrowd(size, 0, seeded())
	honest := "2001:db8:ffff::1"
	c.enter(honest)
	hostile := func(i int) string {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, byte(i >> 8), byte(i), 15: 1}).String()
	}
	for i := range 2000 {
		c.enter(hostile(i))
	}
	if c.evicted[honest] != 0 {
		t.Error("the honest peer of another /48 was evicted")
	}
	lost := 0
	for i := range 2000 {
		lost += c.evicted[hostile(i)]
	}
	if want := 2001 - size; lost != want {
		t.Errorf("%d were evicted, want %d", lost, want)
	}

	// Within the /48, the /56 that holds least is safe.
	c = newCrowd(size, 0, seeded())
	quiet := "2001:db8:1:ff00::1"
	c.enter(quiet)
	for i := range 2000 {
		c.enter(hostile(i % 0x0400)) // four networks of /56
	}
	if c.evicted[quiet] != 0 {
		t.Error("the peer of a /56 with one connection was evicted")
	}
	// Within the /56, the /64 that holds least is safe.
	c = newCrowd(size, 0, seeded())
	c.enter("2001:db8:1:0::1")
	for i := range 2000 {
		c.enter(hostile(1 + i%2))
	}
	if c.evicted["2001:db8:1:0::1"] != 0 {
		t.Error("the peer of a /64 with one connection was evicted")
	}
}

func TestATieIsBrokenAtRandom(t *testing.T) {
	first := map[string]int{}
	for seed := range uint64(400) {
		c := newCrowd(4, 0, rand.New(rand.NewPCG(seed, 1)).IntN)
		for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"} {
			c.enter(a)
		}
		for a := range c.evicted {
			first[a]++
		}
	}
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"} {
		if n := first[a]; n < 40 || n > 120 { // of 400 in five
			t.Errorf("%s was evicted %d times", a, n)
		}
	}
}

func TestPlacesOfProvedPeersAreBeyondReach(t *testing.T) {
	c := newCrowd(10, 2, seeded())
	for range 2 {
		if !c.enter("192.0.2.1").Prove() {
			t.Fatal("there was no place")
		}
	}
	third := c.enter("192.0.2.2")
	if third.Prove() {
		t.Error("three have two places")
	}
	for range 1000 {
		c.enter("192.0.2.1") // the address of the proved ones, too
	}
	if n := c.evicted["192.0.2.1"]; n != 1000-9 {
		t.Errorf("%d were evicted, want %d", n, 1000-9)
	}
	for _, p := range c.open["192.0.2.1"][:2] {
		if !p.Prove() {
			t.Error("a proved one was evicted")
		}
	}
	c.open["192.0.2.1"][0].Leave()
	if !third.Prove() {
		t.Error("the place that a proved one has left is not free")
	}
	if victim := newCrowd(1, 1, func(int) int { return 0 }); true {
		gone := victim.enter("192.0.2.1")
		victim.enter("192.0.2.1")
		if gone.Prove() {
			t.Error("one that was evicted has proved itself")
		}
	}
}
