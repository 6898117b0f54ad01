package broker

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/sesame-init/sesame/broker/policy"
)

func TestOneAddressCannotTakeAllConnections(t *testing.T) {
	limits := policy.DefaultLimits()
	limits.PerPeer, limits.Rate, limits.Burst = 3, 10, 5
	a := newAdmission(nil, limits, NewMetrics())
	now := time.Unix(1e9, 0)
	for i, want := range []string{"", "", "", "per_peer"} {
		if got := a.enter("10.0.0.1", now); got != want {
			t.Errorf("connection %d: %q, want %q", i, got, want)
		}
	}
	if got := a.enter("10.0.0.2", now); got != "" {
		t.Errorf("another address: %q", got)
	}
	for i, want := range []string{"", "", "rate"} { // 5 of the burst are used up
		a.leave("10.0.0.1")
		if got := a.enter("10.0.0.1", now); got != want {
			t.Errorf("again, connection %d: %q, want %q", i, got, want)
		}
	}
	if got := a.enter("10.0.0.1", now.Add(time.Second)); got != "" {
		t.Errorf("a second later: %q", got)
	}
}

func TestAddressesThatAreGoneAreForgotten(t *testing.T) {
	a := newAdmission(nil, policy.DefaultLimits(), NewMetrics())
	now := time.Unix(1e9, 0)
	a.enter("stays", now)
	for i := range 2 * maxPeers {
		address := fmt.Sprint(i)
		a.enter(address, now)
		a.leave(address)
	}
	if len(a.peers) > maxPeers || a.seen.Len() != len(a.peers) || a.peers["stays"] == nil {
		t.Errorf("%d addresses, %d in order", len(a.peers), a.seen.Len())
	}
}

func TestTheListenerWaitsWhenItIsFull(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limits := policy.DefaultLimits()
	limits.Connections = 1
	a := newAdmission(l, limits, NewMetrics())
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	dial()
	dial()
	first, err := a.Accept()
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() {
		second, err := a.Accept()
		if err == nil {
			_ = second.Close()
		}
		next <- err
	}()
	select {
	case err := <-next:
		t.Fatalf("a second one was taken: %v", err)
	default:
	}
	_ = first.Close()
	_ = first.Close() // twice must not free two places
	if err := <-next; err != nil {
		t.Error(err)
	}
	if len(a.places) != 0 {
		t.Errorf("%d places are taken", len(a.places))
	}
	_ = a.Close()
	if _, err := a.Accept(); err == nil {
		t.Error("it accepts after its end")
	}
}
