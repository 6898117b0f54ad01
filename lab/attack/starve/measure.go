package starve

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// Plan is an attack on a broker in a process of its own, beside an honest peer.
type Plan struct {
	Broker   *exec.Cmd // a program that does nothing but [ServeTarget]; its standard input and output are used
	Limits   string    // broker.limits of its policy, in YAML's flow form
	Crowd    int       // hostile connections, of all classes together
	Behind   bool      // the honest peer has the attackers' address; else they have two others
	Pause    time.Duration
	Deadline time.Duration // of the honest peer
}

// Report is what came of it.
type Report struct {
	Served  time.Duration // that the honest peer took
	Opened  int64         // hostile connections in all
	Most    int64         // at once
	Leaked  int64         // secrets that the attackers have got
	PeakRSS int           // of the broker, in bytes
}

// String is one line for people.
func (r Report) String() string {
	return fmt.Sprintf("honest peer served in %v; %d hostile connections, %d at once; broker's memory %d MiB at most; leaked %d",
		r.Served.Round(time.Millisecond), r.Opened, r.Most, r.PeakRSS>>20, r.Leaked)
}

const secret = "image_key"

// Run carries out the plan. The error says that the honest peer was not served, or that there was no attack.
func (p Plan) Run(ctx context.Context) (r Report, err error) {
	platform, err := softsgx.New(softsgx.Options{Now: brokertest.Now.Add(-24 * time.Hour)})
	if err != nil {
		return r, err
	}
	address, stop, err := p.start(platform)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	crowd, err := p.crowd(platform)
	if err != nil {
		return r, err
	}
	from := []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	if p.Behind {
		from = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	figures := &Figures{}
	attack, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		Attack{Address: address, From: from, Crowd: crowd, Pause: p.Pause}.Run(attack, figures)
		close(ended)
	}()
	err = p.await(ctx, figures)
	if err == nil {
		r.Served, err = p.honest(ctx, platform, address)
	}
	peak, fault := peakRSS(p.Broker.Process.Pid)
	end()
	<-ended
	r.Opened, r.Most, r.Leaked, r.PeakRSS = figures.Opened.Load(), figures.Most.Load(), figures.Secrets.Load(), peak
	return r, errors.Join(err, fault)
}

// start starts the broker. stop ends it.
func (p Plan) start(platform *softsgx.Platform) (address string, stop func() error, err error) {
	in, err := p.Broker.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	out, err := p.Broker.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := p.Broker.Start(); err != nil {
		return "", nil, err
	}
	stop = func() error {
		_ = in.Close()
		return p.Broker.Wait()
	}
	err = json.NewEncoder(in).Encode(Target{
		Policy: brokertest.PolicyText(1, `
workloads:
  demo: {versions: [{sgx: [{mr_enclave: `+strings.Repeat("aa", 32)+`}]}]}
  machine: {versions: [{tpm: [{ak: `+strings.Repeat("bb", 32)+`, pcrs: {0: `+strings.Repeat("cc", 32)+`}}]}]}
secrets: {`+secret+`: {workloads: [demo, machine]}}
broker: {limits: {`+p.Limits+`}}
`),
		Root: platform.RootCA().Raw, Collateral: platform.Collateral(), Secrets: map[string][]byte{secret: []byte("the key")},
	})
	if err == nil {
		address, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		return "", nil, errors.Join(err, stop())
	}
	return strings.TrimSpace(address), stop, nil
}

// crowd has as many of every class.
func (p Plan) crowd(platform *softsgx.Platform) ([]Group, error) {
	made, err := NewSelfMade()
	if err != nil {
		return nil, err
	}
	unknown := platform.Attester(brokertest.Enclave(0x77, 1, 2))
	classes := []Class{Silent, Shaken, Watching, Greeting, Asking(made, secret), Asking(unknown, secret)}
	var crowd []Group
	for i, class := range classes {
		crowd = append(crowd, Group{class, (p.Crowd + i) / len(classes)})
	}
	return crowd, nil
}

// await waits until as many hostile connections were opened as the crowd has.
func (p Plan) await(ctx context.Context, f *Figures) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(2 * time.Minute)
	for f.Opened.Load() < int64(p.Crowd) {
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("%d of %d hostile connections were opened", f.Opened.Load(), p.Crowd)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// honest fetches the secret as an init does, which is started again when its boot has failed.
func (p Plan) honest(ctx context.Context, platform *softsgx.Platform, address string) (time.Duration, error) {
	client, err := grpcratls.New(grpcratls.Config{
		Servers: []string{address}, Protocol: grpcratls.SessionV1, Attester: platform.Attester(brokertest.Workload()),
		Verifier: AnyBroker{}, Policy: AnyBroker{}, Now: brokertest.Clock, Pause: 50 * time.Millisecond,
	})
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.Deadline)
	defer cancel()
	begin := time.Now()
	got, err := client.Fetch(ctx, []string{secret})
	for err != nil && ctx.Err() == nil {
		got, err = client.Fetch(ctx, []string{secret})
	}
	if err == nil && string(got[secret].Expose()) != "the key" {
		err = errors.New("the honest peer has got another secret")
	}
	return time.Since(begin), err
}

// peakRSS is the most memory that a process has had, in bytes.
func peakRSS(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), "VmHWM:")
	var kib int
	_, err = fmt.Sscan(after, &kib)
	return kib << 10, err
}
