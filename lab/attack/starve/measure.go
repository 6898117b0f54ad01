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
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// Plan is an attack on a broker in a process of its own, beside an honest peer.
type Plan struct {
	Broker   *exec.Cmd // a program that does nothing but [ServeTarget]; its standard input and output are used
	Limits   string    // broker.limits of its policy, in YAML's flow form
	Crowd    int       // hostile connections without evidence, of all classes together
	Shows    int       // hostile connections of each class that shows evidence
	Behind   bool      // the honest peer has the attackers' address; else they have two others
	Pause    time.Duration
	Deadline time.Duration // of the honest peer
	Rest     time.Duration // at most, for which the attack goes on then until it is [Figures.Full]
}

// Report is what came of it.
type Report struct {
	Served  time.Duration // that the honest peer took
	Opened  int64         // hostile connections in all
	Most    int64         // at once
	Leaked  int64         // secrets that the attackers have got
	PeakRSS int           // of the broker, in bytes
	Rows    []*Row        // of each class
}

// String is one line for people, and one for each class.
func (r Report) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "honest peer served in %v; %d hostile connections, %d at once; broker's memory %d MiB at most; leaked %d",
		r.Served.Round(time.Millisecond), r.Opened, r.Most, r.PeakRSS>>20, r.Leaked)
	for _, row := range r.Rows {
		fmt.Fprintf(&s, "\n%5d peers %-44s %6d connections, as many as peers %s; %6d %s, as many as peers %s",
			row.Number, row.Name+":", row.Opened.Count(), row.Opened, row.Done.Count(), row.Acted, row.Done)
	}
	return s.String()
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
	crowd := p.crowd(platform)
	from := []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	if p.Behind {
		from = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	figures := NewFigures(crowd)
	r.Rows = figures.Rows
	attack, end := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		Attack{Address: address, From: from, Pause: p.Pause}.Run(attack, figures)
		close(ended)
	}()
	if await(ctx, 2*time.Minute, figures.Come) {
		r.Served, err = p.honest(ctx, platform, address)
	} else {
		err = errors.New("not all of the hostile peers have come")
	}
	if err == nil {
		await(ctx, p.Rest, figures.Full) // they are in each other's way, too
		if idle := figures.Idle(); len(idle) > 0 {
			err = fmt.Errorf("there was no attack by peers %s", strings.Join(idle, ", "))
		}
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

// crowd are those that hold a place and show nothing, and those that show evidence: well formed, of an AK that no TPM has,
// or genuine, of an enclave that the policy does not know.
func (p Plan) crowd(platform *softsgx.Platform) []Group {
	made := func() (attest.Attester, error) { return NewSelfMade() }
	unknown := func() (attest.Attester, error) { return platform.Attester(brokertest.Enclave(0x77, 1, 2)), nil }
	silent := []Group{
		{Name: "that say nothing", Class: Silent, Acted: "were silent"},
		{Name: "that shake hands", Class: Shaken, Acted: "shook hands"},
		{Name: "that watch the broker's health", Class: Watching, Acted: "saw it"},
		{Name: "that begin a session", Class: Greeting, Acted: "got the broker's evidence"},
	}
	for i := range silent {
		silent[i].Number = (p.Crowd + i) / len(silent)
	}
	all := append(silent,
		Group{Name: "with a self-made AK each", Class: Asking(made, secret), Number: p.Shows, Acted: "refused"},
		Group{Name: "with genuine evidence of an unknown enclave", Class: Asking(unknown, secret), Number: p.Shows, Acted: "refused"})
	return slices.DeleteFunc(all, func(g Group) bool { return g.Number == 0 })
}

// await waits until something holds of the attack, and reports whether it does.
func await(ctx context.Context, most time.Duration, holds func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(most)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
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
