package broker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// machine is a software TPM that runs, and what its evidence claims.
type machine struct {
	socket string
	device *tpm.Device
	claims *attest.TPMClaims
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	_, running := swtpm.ForTest(t)
	m := &machine{socket: running.Socket}
	m.device = m.open(t, tpm.Options{EK: true})
	e, err := m.device.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := (&tpm.Verifier{}).Verify(t.Context(), e, brokertest.Now)
	if err != nil {
		t.Fatal(err)
	}
	m.claims = claims.TPM
	return m
}

func (m *machine) open(t *testing.T, o tpm.Options) *tpm.Device {
	t.Helper()
	o.Path = m.socket
	d, err := tpm.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// old is an attester that answers no challenges, as those of the first release.
type old struct{ attest.Attester }

// guessing answers a challenge by what it makes up.
type guessing struct{ attest.Attester }

func (guessing) Activate(context.Context, attest.Evidence, []byte, []byte) (attest.Secret, error) {
	return attest.NewSecret(make([]byte, 32)), nil
}

// thief is a TPM that names another machine's endorsement key in its evidence.
type thief struct {
	*machine
	stolen []byte
}

func (thief) Type() attest.EvidenceType { return attest.TPM }

// Evidence is as package tpm describes the encoding.
func (m thief) Evidence(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	rw, err := tpm2.OpenTPM(m.socket)
	if err != nil {
		return attest.Evidence{}, err
	}
	ak, err := client.AttestationKeyECC(rw)
	if err != nil {
		return attest.Evidence{}, err
	}
	defer ak.Close()
	ek := sha256.Sum256(m.stolen)
	extra := sha256.Sum256(append(append([]byte("sesame-tpm-v1"), data[:]...), ek[:]...))
	quote, err := ak.Quote(tpm2.PCRSelection{Hash: tpm2.AlgSHA256, PCRs: []int{7}}, extra[:])
	if err != nil {
		return attest.Evidence{}, err
	}
	public, err := ak.PublicArea().Encode()
	if err != nil {
		return attest.Evidence{}, err
	}
	raw, err := cbor.Marshal(map[int]any{1: 1, 2: data[:], 3: public, 4: quote.GetQuote(), 5: quote.GetRawSig(),
		6: map[int][]byte{7: quote.GetPcrs().GetPcrs()[7]}, 8: m.stolen})
	return attest.Evidence{Type: attest.TPM, Raw: raw}, err
}

// byEK is a policy with one workload, known by its endorsement key, whose one secret may leave twice.
func byEK(m *machine) string {
	return fmt.Sprintf("workloads: {vm-of-customer: {versions: [{tpm: [{ek: '%x', wrap: true, pcrs: {7: '%064x'}}]}]}}\n"+
		"secrets: {image_key: {workloads: [vm-of-customer], releases: 2}}\n", m.claims.EK, 0)
}

func TestAnEndorsementKeyIsProvedBeforeAnythingIsReleased(t *testing.T) {
	honest, other := newMachine(t), newMachine(t)
	f, keeper := startCounted(t, byEK(honest), nil)
	stolen := thief{other, honest.claims.EKPublic}
	for name, a := range map[string]attest.Attester{
		"made-up answer": guessing{stolen}, "no answer": stolen, "its own key": other.device,
		"another machine's evidence, made-up answer": guessing{honest.device},
	} {
		_, err := ask(t, f.client(t, a), "image_key")
		if err == nil || keeper.released.Load() != 0 {
			t.Fatalf("%s: %v, %d releases", name, err, keeper.released.Load())
		}
		for _, secret := range []string{"vm-of-customer", fmt.Sprintf("%064x", 0)} {
			if strings.Contains(err.Error()+attest.HintOf(err), secret) {
				t.Errorf("%s: it hears %s: %v", name, secret, err)
			}
		}
	}
	for range 2 { // nothing is used up
		got, err := ask(t, f.client(t, honest.device), "image_key")
		if err != nil || string(got["image_key"].Expose()) != canary {
			t.Fatalf("%v: %s", err, f.log)
		}
	}
	if _, err := ask(t, f.client(t, honest.device), "image_key"); attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("a third time: %v", err)
	}
	f, _ = startCounted(t, byEK(honest), nil)
	ephemeral := honest.open(t, tpm.Options{EK: true, EphemeralAK: true, PCRs: []int{7}})
	if _, err := ask(t, f.client(t, ephemeral), "image_key"); err != nil {
		t.Errorf("an ephemeral attestation key: %v", err)
	}
}

func TestAStrangerLearnsNothingOfThePolicy(t *testing.T) {
	m := newMachine(t)
	lengths := map[int]int{}
	for _, n := range []int{1, 50} {
		var workloads strings.Builder
		for i := range n {
			fmt.Fprintf(&workloads, "  vm-%d: {versions: [{tpm: [{ak: '%064x', pcrs: {7: '%064x'}}]}]}\n", i, 0xabc+i, 0x123+i)
			fmt.Fprintf(&workloads, "  enclave-%d: {versions: [{sgx: [{mr_enclave: '%064x'}]}]}\n", i, 0xdef+i)
		}
		f, keeper := startCounted(t, "workloads:\n"+workloads.String()+"secrets: {image_key: {workloads: [vm-0]}}\n", nil)
		for kind, a := range map[string]attest.Attester{"tpm": m.open(t, tpm.Options{}), "sgx": f.platform.Attester(brokertest.Workload())} {
			_, err := ask(t, f.client(t, a), "image_key")
			told := err.Error() + attest.HintOf(err)
			if strings.Contains(told, "vm-") || strings.Contains(told, "enclave-0") || strings.Contains(told, "00000abc") || !strings.Contains(told, "under request ") {
				t.Errorf("%s hears %s", kind, told)
			}
			if reason := keeper.decision().Reason; strings.Contains(reason, "vm-") || strings.Contains(reason, "enclave-0") {
				t.Errorf("the entry, which %s gets with its receipt, says %s", kind, reason)
			}
			if kind == "tpm" {
				lengths[n] = len(told)
			}
			_, id, _ := strings.Cut(attest.HintOf(err), "under request ")
			id, _, _ = strings.Cut(id, ".")
			if line := lineOf(f.log.String(), id); !strings.Contains(line, "enclave-0.versions[0]") && !strings.Contains(line, "vm-0.versions[0]") {
				t.Errorf("%s: the log has under request %q: %.200s", kind, id, line)
			}
		}
	}
	if lengths[1] != lengths[50] {
		t.Errorf("the refusal has %d bytes with one workload and %d with 50", lengths[1], lengths[50])
	}
	// The attestation key of an entry, with another state: this machine may hear what is wanted of it.
	f, _ := startCounted(t, fmt.Sprintf("workloads: {vm: {versions: [{tpm: [{ak: '%x', pcrs: {7: '%064x'}}]}]}}\n"+
		"secrets: {image_key: {workloads: [vm]}}\n", m.claims.AK, 9), nil)
	if _, err := ask(t, f.client(t, m.device), "image_key"); err == nil || !strings.Contains(err.Error(), "workloads.vm.versions[0].tpm[0].pcrs.7") {
		t.Errorf("%v", err)
	}
}

func lineOf(log, part string) string {
	for line := range strings.Lines(log) {
		if part != "" && strings.Contains(line, part) {
			return line
		}
	}
	return ""
}

func TestAnInitThatAnswersNoChallengesHearsTheSameWhateverItIs(t *testing.T) {
	wanted, other := newMachine(t), newMachine(t)
	f, keeper := startCounted(t, byEK(wanted), nil)
	const want = "this broker needs init of version " + session.ChallengesSince + " or newer for TPM evidence"
	var heard []string
	for _, m := range []*machine{wanted, other} {
		_, err := ask(t, f.client(t, old{m.device}), "image_key")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v", err)
		}
		heard = append(heard, err.Error())
	}
	if heard[0] != heard[1] || keeper.released.Load() != 0 {
		t.Errorf("%q, %d releases", heard, keeper.released.Load())
	}
	// By its attestation key it is served as ever, by a broker that challenges others, and a new init by one that does not.
	byAK := fmt.Sprintf("  vm: {versions: [{tpm: [{ak: '%x', pcrs: {7: '%064x'}}]}]}\n", wanted.claims.AK, 0)
	byOther := fmt.Sprintf("  vm-of-customer: {versions: [{tpm: [{ek: '%x', wrap: true, pcrs: {7: '%064x'}}]}]}\n", other.claims.EK, 0)
	secrets := "secrets: {image_key: {workloads: [vm]}}\n"
	for policy, a := range map[string]attest.Attester{"workloads:\n" + byAK + byOther + secrets: old{wanted.device}, "workloads:\n" + byAK + secrets: wanted.device} {
		f, _ := startCounted(t, policy, nil)
		if _, err := ask(t, f.client(t, a), "image_key"); err != nil {
			t.Error(err)
		}
	}
}

// ticking is a clock that goes on a second with every look at it.
type ticking struct{ now atomic.Int64 }

func (c *ticking) set(at time.Time) { c.now.Store(at.UnixNano()) }

func (c *ticking) look() time.Time { return time.Unix(0, c.now.Add(int64(time.Second))).UTC() }

// unwrapping counts the secrets that its TPM had to open.
type unwrapping struct {
	*tpm.Device
	opened atomic.Int64
}

func (u *unwrapping) Unwrap(ctx context.Context, raw []byte) (attest.Secret, error) {
	u.opened.Add(1)
	return u.Device.Unwrap(ctx, raw)
}

func TestAnEndBetweenTwoLooksAtTheClockLetsNothingLeaveInTheOpen(t *testing.T) {
	m := newMachine(t)
	end := brokertest.Now.Add(time.Hour)
	text := fmt.Sprintf("workloads: {vm: {versions: [{until: %s, tpm: [{ak: '%x', ek: '%x', wrap: true, pcrs: {7: '%064x'}}]}]}}\n"+
		"secrets: {image_key: {workloads: [vm]}}\n", end.Format(time.RFC3339), m.claims.AK, m.claims.EK, 0)
	clock := new(ticking)
	f := start(t, func(f *fixture, c *broker.Config) {
		c.Now = clock.look
		decide(t, f, c, nil, text)
	})
	device := &unwrapping{Device: m.device}
	served := int64(0)
	for before := range 8 { // looks at the clock before the end
		clock.set(end.Add(-time.Duration(before)*time.Second - time.Millisecond))
		_, err := ask(t, f.client(t, device), "image_key")
		if err == nil {
			served++
		}
		if opened := device.opened.Load(); opened != served {
			t.Fatalf("%d looks before the end: %d secrets left, %d of them wrapped", before, served, opened)
		}
	}
	if served == 0 || served == 8 {
		t.Errorf("%d of 8 were served", served)
	}
}

// slow is a TPM at whose answer something happens.
type slow struct {
	*tpm.Device
	before func()
}

func (s slow) Activate(ctx context.Context, quoted attest.Evidence, blob, seed []byte) (attest.Secret, error) {
	s.before()
	return s.Device.Activate(ctx, quoted, blob, seed)
}

func TestAPeerThatHoldsItsAnswerBackIsJudgedWhenItComes(t *testing.T) {
	m := newMachine(t)
	end := brokertest.Now.Add(time.Hour)
	text := strings.Replace(byEK(m), "[{tpm:", "[{until: "+end.Format(time.RFC3339)+", tpm:", 1)
	var now atomic.Int64
	keeper := &counted{}
	var policies *broker.Policies
	f := start(t, func(f *fixture, c *broker.Config) {
		keeper.Keeper, c.Keeper = c.Keeper, keeper
		c.Now = func() time.Time { return time.Unix(0, now.Load()).UTC() }
		decide(t, f, c, nil, text)
		policies = c.Policies
	})
	now.Store(brokertest.Now.UnixNano())
	if _, err := ask(t, f.client(t, slow{m.device, func() { now.Store(end.UnixNano()) }}), "image_key"); attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("it held its answer until the end: %v", err)
	}
	now.Store(brokertest.Now.UnixNano())
	without := brokertest.PolicyText(2, strings.ReplaceAll(text, fmt.Sprintf("%x", m.claims.EK), strings.Repeat("07", 32)))
	reload := func() {
		if err := policies.Replace(context.Background(), []byte(without), "test"); err != nil {
			t.Error(err)
		}
	}
	if _, err := ask(t, f.client(t, slow{m.device, reload}), "image_key"); attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("it held its answer over a change of the policy: %v", err)
	}
	if n := keeper.released.Load(); n != 0 {
		t.Errorf("%d releases", n)
	}
}

// late is a keeper whose first release comes to its commit late.
type late struct {
	broker.Keeper
	once   sync.Once
	before func()
}

func (l *late) Release(ctx context.Context, d broker.Decision) ([]attest.Secret, broker.Receipt, error) {
	l.once.Do(l.before)
	return l.Keeper.Release(ctx, d)
}

func TestADecisionThatComesLateToItsCommitIsMadeAgain(t *testing.T) {
	end := brokertest.Now.Add(5 * time.Second)
	text := strings.Replace(twoWorkloads, "[demo]", "[demo], until: "+end.Format(time.RFC3339), 1)
	for wait, code := range map[time.Duration]attest.Code{5 * time.Second: "", 6 * time.Second: attest.CodeSecret} {
		var now atomic.Int64
		now.Store(brokertest.Now.UnixNano())
		f := start(t, func(f *fixture, c *broker.Config) {
			c.Keeper = &late{Keeper: c.Keeper, before: func() { now.Add(int64(wait)) }}
			c.Now = func() time.Time { return time.Unix(0, now.Load()).UTC() }
			decide(t, f, c, nil, text)
		})
		_, err := ask(t, f.client(t, f.platform.Attester(brokertest.Workload())), "image_key")
		if (err == nil) != (code == "") || err != nil && attest.CodeOf(err) != code {
			t.Errorf("after %s: %v", wait, err)
		}
	}
}

// asking is a broker that proves itself and then challenges again and again.
type asking struct {
	sessionpb.UnimplementedKeyBrokerServer
	config session.BrokerConfig
	own    *tls.Certificate
}

func (a *asking) Release(stream session.Stream) error {
	p, _ := peer.FromContext(stream.Context())
	who, err := a.config.Accept(stream, p.AuthInfo.(credentials.TLSInfo).State, a.own.Leaf)
	if err != nil {
		return err
	}
	for {
		err := session.Challenge(stream, who, []byte("blob"), []byte("seed"), attest.NewSecret(bytes.Repeat([]byte{7}, 32)))
		if err != nil {
			return err
		}
	}
}

// answering is an attester that opens every credential and counts them.
type answering struct {
	attest.Attester
	answers atomic.Int64
}

func (a *answering) Activate(context.Context, attest.Evidence, []byte, []byte) (attest.Secret, error) {
	a.answers.Add(1)
	return attest.NewSecret(bytes.Repeat([]byte{7}, 32)), nil
}

func TestAClientAnswersAVerifiedBrokerAtMostTwice(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{})
	own := newKeyPair(t)
	certificate := func(context.Context) (*tls.Certificate, error) { return own, nil }
	for name, c := range map[string]struct {
		policy  *appraisal.Policy
		answers int64
	}{
		"the broker that it wants": {brokertest.BrokerPolicy(), 2},
		"another one":              {brokertest.WorkloadPolicy(), 0},
	} {
		server := grpc.NewServer(grpc.Creds(credentials.NewTLS(ratls.ServerConfig(certificate, accept))))
		sessionpb.RegisterKeyBrokerServer(server, &asking{own: own,
			config: session.BrokerConfig{Quoter: brokertest.Quoter(platform, brokertest.Broker())}})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(server.Stop)
		a := &answering{Attester: platform.Attester(brokertest.Workload())}
		f := &fixture{platform: platform, address: l.Addr().String()}
		_, err = ask(t, f.client(t, a, func(config *grpcratls.Config) { config.Policy = c.policy }), "image_key")
		if err == nil || c.answers > 0 && (attest.CodeOf(err) != attest.CodeEvidence || !strings.Contains(err.Error(), "more than 2 times")) {
			t.Errorf("%s: %v", name, err)
		}
		if n := a.answers.Load(); n != c.answers {
			t.Errorf("%s: %d answers, want %d", name, n, c.answers)
		}
	}
}
