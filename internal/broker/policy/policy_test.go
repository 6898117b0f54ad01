package policy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/policy"
)

// now is between the releases of the example's roll-out: both of its versions count.
var now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

const example = "../../../docs/policy.example.yaml"

func read(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// enclave are claims of an enclave all of whose MRENCLAVE is b.
func enclave(b byte) attest.Claims {
	c := attest.Claims{Type: attest.SGX, SGX: &attest.SGXClaims{Attributes: attest.AttributeInit}}
	for i := range c.SGX.MREnclave {
		c.SGX.MREnclave[i] = b
	}
	c.TCB.EvaluationNumber = 17
	return c
}

func names(ws []*policy.Workload) string {
	var out []string
	for _, w := range ws {
		out = append(out, w.Name())
	}
	return strings.Join(out, " ")
}

func TestTheDocumentedExampleIsSoundAndMeansWhatItSays(t *testing.T) {
	p := parse(t, read(t))
	day := func(month time.Month, day int) time.Time { return time.Date(2026, month, day, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		measurement byte
		at          time.Time
		wire        string
		want        string
	}{
		{0x11, day(11, 1), policy.WireSession, "resnet"},
		{0x11, now, policy.WireSession, "resnet"},
		{0x11, day(12, 31), policy.WireSession, ""},
		{0x22, day(11, 14), policy.WireSession, ""},
		{0x22, now, policy.WireSession, "resnet"},
		{0x22, now, policy.WireLegacy, ""}, // not of the legacy wire
		{0x55, now, policy.WireSession, ""},
	} {
		matched, err := p.Match(enclave(c.measurement), c.at, c.wire)
		if names(matched.Workloads) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%x at %s on wire %s is %q, want %q: %v", c.measurement, c.at, c.wire, names(matched.Workloads), c.want, err)
		}
		if err != nil && attest.CodeOf(err) != attest.CodePolicy {
			t.Errorf("%x: code %s", c.measurement, attest.CodeOf(err))
		}
	}
	signed := enclave(0x55)
	for i := range signed.SGX.MRSigner {
		signed.SGX.MRSigner[i] = 0x33
	}
	signed.SGX.ProductID, signed.SGX.SVN = 200, 4
	for _, wire := range []string{policy.WireSession, policy.WireLegacy} {
		if matched, err := p.Match(signed, now, wire); names(matched.Workloads) != "old-resnet" {
			t.Errorf("wire %s: %q, %v", wire, names(matched.Workloads), err)
		}
	}
	signed.SGX.SVN = 3
	if matched, _ := p.Match(signed, now, policy.WireLegacy); len(matched.Workloads) != 0 {
		t.Error("a lower SVN is accepted")
	}
}

func TestASecretGoesToItsWorkloadsInItsTimeOnly(t *testing.T) {
	p := parse(t, read(t))
	resnet, err := p.Match(enclave(0x22), now, policy.WireSession)
	if err != nil {
		t.Fatal(err)
	}
	late := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		peer   policy.Matched
		secret string
		at     time.Time
		rule   string
		given  bool
	}{
		{resnet, "image_key", now, "secrets.image_key.workloads", true},
		{resnet, "model_key", now, "secrets.model_key.workloads", true},
		{resnet, "model_key", late, "secrets.model_key.until", false},
		{resnet, "dataset_key", now, "secrets.dataset_key.workloads", false},
		{resnet, "no_such", now, "secrets", false},
		{policy.Matched{}, "image_key", now, "workloads", false},
	} {
		c.peer.At = c.at
		g, err := p.Grant(c.peer, c.secret)
		if g.Rule != c.rule || (err == nil) != c.given || err != nil && attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("%s: %+v, %v", c.secret, g, err)
		}
		if c.secret == "model_key" && err == nil && (g.Releases == nil || *g.Releases != 1000) {
			t.Errorf("limit is %v", g.Releases)
		}
	}
}

func TestASecretThatMustBeWrappedGoesToNobodyElse(t *testing.T) {
	p := parse(t, strings.Replace(read(t), "    workloads: [resnet, old-resnet]", "    workloads: [resnet, old-resnet]\n    wrap: true", 1))
	const secret, rule = "image_key", "secrets.image_key.wrap"
	resnet, err := p.Match(enclave(0x22), now, policy.WireSession)
	if err != nil {
		t.Fatal(err)
	}
	if g, err := p.Grant(resnet, secret); g.Rule != rule || attest.CodeOf(err) != attest.CodeDenied {
		t.Errorf("not wrapped: %+v, %v", g, err)
	}
	wrapped := resnet
	wrapped.Wrap = []int{7}
	if _, err := p.Grant(wrapped, secret); err != nil {
		t.Errorf("wrapped: %v", err)
	}
	// An enclave demands no wrapping, and the explanation says what the broker does.
	if e := p.Explain(enclave(0x22), now, secret); e.Accepted || e.Rules[len(e.Rules)-1].Rule != rule {
		t.Errorf("explained as %+v", e)
	}
	if e := p.Explain(enclave(0x22), now, ""); slices.Contains(e.Secrets, secret) {
		t.Errorf("it may have %v", e.Secrets)
	}
}

func TestAWorkloadGetsTheVersionThatIsPinnedForIt(t *testing.T) {
	id := strings.Repeat("4", 32)
	p, err := policy.Parse([]byte(strings.Replace(read(t), "    workloads: [resnet, old-resnet]", "    workloads: [resnet, old-resnet]\n    versions: {old-resnet: "+id+"}", 1)))
	if err != nil {
		t.Fatal(err)
	}
	for workload, want := range map[string]string{"old-resnet": id, "resnet": ""} {
		g, err := p.Grant(policy.Matched{Workloads: []*policy.Workload{p.Workloads[workload]}, At: now}, "image_key")
		if err != nil || g.Version != want {
			t.Errorf("%s gets version %q, want %q: %v", workload, g.Version, want, err)
		}
	}
}

func TestTheRootKeyGoesToOtherBrokersOnly(t *testing.T) {
	text := strings.Replace(read(t), "  trust-domain:\n", "  replica:\n    broker: true\n    versions: [{sgx: [{mr_enclave: "+
		strings.Repeat("55", 32)+"}]}]\n  trust-domain:\n", 1)
	for _, p := range []*policy.Policy{parse(t, text), parse(t, read(t))} {
		for measurement, want := range map[byte]bool{0x55: p.Workloads["replica"] != nil, 0x22: false} {
			peer, _ := p.Match(enclave(measurement), now, policy.WireSession)
			if _, err := p.Grant(peer, policy.RootKey); (err == nil) != want {
				t.Errorf("%x: %v", measurement, err)
			}
			if _, err := p.Grant(peer, policy.Reserved+"other"); err == nil {
				t.Errorf("%x has another of the broker's own", measurement)
			}
		}
	}
}

func TestExplainSaysEveryRuleAndDecidesAsTheBroker(t *testing.T) {
	p := parse(t, read(t))
	e := p.Explain(enclave(0x22), now, "")
	if !e.Accepted || !slices.Equal(e.Workloads, []string{"resnet"}) || !slices.Equal(e.Secrets, []string{"image_key", "model_key"}) {
		t.Errorf("%+v", e)
	}
	want := map[string]bool{
		"workloads.resnet.versions[1].from":                  true,
		"workloads.resnet.versions[1].sgx[0].mr_enclave":     true,
		"workloads.resnet.versions[1].tcb.accept":            true,
		"workloads.old-resnet.versions[0].sgx[0].mr_signer":  false,
		"workloads.trust-domain.versions[0].sgx":             false,
		"workloads.old-resnet.versions[0].sgx[0].product_id": false,
		"workloads.old-resnet.versions[0].sgx[0].debug":      true,
	}
	for _, r := range e.Rules {
		if passed, ok := want[r.Rule]; ok && passed == r.Passed {
			delete(want, r.Rule)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing or otherwise: %v in %+v", want, e.Rules)
	}
	if e := p.Explain(enclave(0x22), now, "dataset_key"); e.Accepted || e.Rules[len(e.Rules)-1].Rule != "secrets.dataset_key.workloads" {
		t.Errorf("%+v", e)
	}
}

func TestAllThatIsWrongIsSaidAtOnceWithItsLine(t *testing.T) {
	const text = `version: 1
trust:
  collateral: {url: "http://pccs/", alow_http: true}
workloads:
  a:
    wire: legac
    versions:
      - sgx:
          - mr_signer: 3333333333333333333333333333333333333333333333333333333333333333
            product_id: 70000
            min_svn: "4"
        from: yesterday
  b: &anchor
    versions: []
  c: *anchor
  d:
secrets:
  s: {workloads: [a], workloads: [b]}
  t: {workloads: a}
broker: {limits: {handshake: 20}}
`
	_, err := policy.Parse([]byte(text))
	var faults policy.Faults
	if !errors.As(err, &faults) || attest.CodeOf(err) != attest.CodeConfig {
		t.Fatalf("%v", err)
	}
	for _, want := range []string{
		"line 3: trust.collateral.alow_http: is not a known key", "line 10: ", "line 11: workloads.a.versions[0].sgx[0].min_svn",
		"line 12: ", "line 13: workloads.b: anchors", "line 15: workloads.c: anchors", "line 16: workloads.d: has no value",
		"line 18: secrets.s.workloads: stands there twice", "line 19: secrets.t.workloads: is not a list", "line 20: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if len(faults) != 10 {
		t.Errorf("%d faults:\n%v", len(faults), err)
	}
}

// TestAWorkloadBelowTheMinimumDoesNotLoad takes the example apart.
func TestWhatCannotBeMeantDoesNotLoad(t *testing.T) {
	good := read(t)
	for name, c := range map[string]struct{ from, to, says string }{
		"signer alone":   {"            product_id: 200\n            min_svn: 4\n", "", "versions[0].sgx[0].product_id: is missing"},
		"no svn":         {"            min_svn: 4\n", "", "versions[0].sgx[0].min_svn: is missing"},
		"no measurement": {"      - tdx:\n          - mr_td: " + strings.Repeat("4", 96), "      - tdx:\n          - debug: true", "tdx[0].mr_td: is missing"},
		"legacy broker":  {"    wire: legacy\n", "    wire: legacy\n    broker: true\n", `workloads.old-resnet.wire: is "legacy" and broker is true`},
		"a replica by its EK": {"  trust-domain:\n", "  replica:\n    broker: true\n    versions: [{tpm: [{ek: '" + strings.Repeat("07", 32) +
			"', wrap: true, pcrs: {7: '" + strings.Repeat("07", 32) + "'}}]}]\n  trust-domain:\n", "a server is not challenged"},
		"a client's binding":   {"            min_svn: 4\n", "            min_svn: 4\n            binding: legacy\n", "versions[0].sgx[0].binding: is for policies"},
		"short measurement":    {strings.Repeat("1", 64), "11", "has 1 bytes"},
		"empty measurement":    {strings.Repeat("1", 64), "", "mr_enclave: has no value"},
		"Occlum's signer":      {strings.Repeat("3", 64), "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e", "Occlum's default signer"},
		"unknown status":       {"SWHardeningNeeded", "Fine", "\"Fine\""},
		"no version":           {"version: 7", "# none", "version: is missing"},
		"no workloads":         {"  image_key:\n    workloads: [resnet, old-resnet]", "  image_key:\n    releases: 1", "secrets.image_key.workloads: is missing"},
		"a version's stranger": {"    releases: 1000", "    versions: {trust-domain: " + strings.Repeat("ab", 16) + "}", "is not among the secret's workloads"},
		"a version's id":       {"    releases: 1000", "    versions: {resnet: newest}", "is not the id of a version"},
		"unknown workload":     {"[trust-domain]", "[trust-domian]", "\"trust-domian\" is not a workload"},
		"same but for case":    {"  model_key:", "  Image_Key:", "case alone"},
		"backward span":        {"from: 2026-11-15T00:00:00Z", "from: 2026-11-15T00:00:00Z\n        until: 2026-11-14T00:00:00Z", "is not after from"},
		"date alone":           {"2027-01-01T00:00:00Z", "2027-01-01", "is not a moment"},
		"no collateral":        {"    url: https://pccs.example:8081/sgx/certification/v4/", "    allow_http: true", "trust.collateral: is missing"},
		"http":                 {"https://pccs", "http://pccs", "without TLS"},
		"a root that is none":  {"trust:\n", "trust:\n  roots: [\"x\"]\n", "trust.roots[0]"},
		"two documents":        {"# Settings", "---\n# Settings", "one YAML document"},
		"not YAML":             {"version: 7", "version: [", "line "},
		"a list":               {good, "- a\n", "is not a list of keys"},
		"nothing":              {good, "", "one YAML document"},
		"quote size":           {"size: 1024", "size: 1025", "broker.quotes.size"},
		"too large":            {good, strings.Repeat("#", policy.MaxSize+1), "more than"},
	} {
		if !strings.Contains(good, c.from) {
			t.Errorf("%s: the example does not have %q", name, c.from)
		}
		_, err := policy.Parse([]byte(strings.Replace(good, c.from, c.to, 1)))
		if attest.CodeOf(err) != attest.CodeConfig || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChangesNameWhatDiffers(t *testing.T) {
	old := parse(t, read(t))
	text := strings.NewReplacer("releases: 1000", "releases: 999", "  dataset_key:", "  other_key:", "sessions: 256", "sessions: 255").Replace(read(t))
	got := parse(t, text).Changes(old)
	want := []string{"secrets.dataset_key removed", "secrets.model_key changed", "secrets.other_key added", "broker changed"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := parse(t, read(t)).Changes(old); len(got) != 0 {
		t.Errorf("the same policy differs by %q", got)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("../../../docs/*.yaml")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("a: &b [*b]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := policy.Parse(text)
		if (p == nil) == (err == nil) || err != nil && attest.CodeOf(err) != attest.CodeConfig {
			t.Fatalf("%v, %v", p, err)
		}
		if p != nil {
			p.Explain(enclave(1), now, "image_key")
		}
	})
}
