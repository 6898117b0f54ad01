package attack

import (
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/lab/attack/hostile"
	"github.com/sesame-init/sesame/lab/attack/starve"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

const brokersPolicy = `
workloads:
  demo: {versions: [{sgx: [{mr_enclave: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}]}]}
secrets:
  known: {workloads: [demo]}
`

const (
	bootTime    = 10 * time.Second // for the first broker and the second one
	bootsAtOnce = 4
)

// Brokers lets init's client find a hostile broker before an honest one: one of each kind of package hostile, and an
// impostor, which has an enclave on a platform of its own and gives init a forged secret. Each comes rounds times. A
// secret that is not the honest broker's, or none, is a leak. [Believing] is an init that takes any broker.
func Brokers(t testing.TB, rounds int, fault Fault) (f Figures) {
	t.Helper()
	platform := brokertest.Platform(t, softsgx.Options{})
	keys := keystoreOf(t)
	defer keys.Close()
	honest := brokertest.Listen(t, kept(t, platform, keys, brokersPolicy))
	forging := brokertest.Config(t, platform, map[string][]byte{secretName: []byte("forged")}, io.Discard)
	own := brokertest.Platform(t, softsgx.Options{})
	forging.Identity, forging.Quoter = brokertest.Identity(t, own, brokertest.Broker()), brokertest.Quoter(own, brokertest.Broker())
	impostor := brokertest.Listen(t, forging)

	config := grpcratls.Config{
		Protocol: grpcratls.SessionV1, Attester: platform.Attester(brokertest.Workload()), Now: brokertest.Clock,
		Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy(),
	}
	if fault == Believing {
		config.Verifier, config.Policy = starve.AnyBroker{}, starve.AnyBroker{}
	}
	boot := func(first string) (secret string, err error) {
		c := config
		c.Servers = []string{first, honest}
		client, err := grpcratls.New(c)
		if err != nil {
			return "", err
		}
		ctx, cancel := context.WithTimeout(t.Context(), bootTime)
		defer cancel()
		got, err := client.Fetch(ctx, []string{secretName})
		return string(got[secretName].Expose()), err
	}
	firsts := []string{impostor}
	if fault != Believing { // the others show nothing that it could believe
		for _, kind := range hostile.Kinds() {
			b, err := hostile.Start(kind)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Stop()
			firsts = append(firsts, b.Address)
		}
	}
	held := 0
	var mu sync.Mutex // of it and the figures
	var wg sync.WaitGroup
	places := make(chan struct{}, bootsAtOnce)
	for range rounds {
		for _, first := range firsts {
			places <- struct{}{}
			wg.Go(func() {
				secret, err := boot(first)
				<-places
				mu.Lock()
				defer mu.Unlock()
				f.Tried++
				if err == nil {
					held++
				}
				if err == nil && secret == secretValue {
					f.Refused++
					f.Served++
				} else {
					f.Leaked++
				}
			})
		}
	}
	wg.Wait()
	all, err := Entries(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	f.Unlogged = held
	for _, e := range all {
		if e.Kind == releaselog.Release {
			f.Unlogged--
		}
	}
	f.Unlogged = max(f.Unlogged, 0)
	return f
}

// Crowd lets hostile connections take a broker's places, beside an honest peer. That it is not served counts as leaked.
// Beside the crowd, which shows nothing, half as many peers have an AK of their own making, and half as many genuine evidence
// of an unknown enclave. A crowd below 2,000 meets a broker with as many places; a larger one the limits that a broker has by
// default. [Greedy] is a broker that never gets a place back.
func Crowd(ctx context.Context, program string, crowd int, behind bool, fault Fault) (f Figures, err error) {
	plan := starve.Plan{
		Broker: targetProgram(program, fault, crowd/2), Crowd: crowd, Shows: crowd / 2, Behind: behind,
		Pause: 2 * time.Second, Deadline: time.Minute, Rest: 5 * time.Second,
	}
	if crowd < 2000 {
		plan.Limits = fmt.Sprintf("connections: %d", crowd)
	} else {
		plan.Pause, plan.Rest = 20*time.Second, 15*time.Second
	}
	if fault == Greedy {
		plan.Deadline = 3 * time.Second
	}
	r, err := plan.Run(ctx)
	f.Tried, f.Leaked = int(r.Opened), int(r.Leaked)
	f.Refused = f.Tried - f.Leaked
	switch {
	case r.Opened < int64(crowd): // there was no attack
		return f, err
	case err == nil:
		f.Served = 1
	case r.Served >= plan.Deadline:
		f.Leaked++
		if fault == Greedy {
			err = nil
		}
	}
	if err == nil && r.PeakRSS > mostMemory {
		err = fmt.Errorf("the broker has had %d MiB of memory", r.PeakRSS>>20)
	}
	return f, err
}

const mostMemory = 192 << 20 // bytes that a broker may have when it is attacked
