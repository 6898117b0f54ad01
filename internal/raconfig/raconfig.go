// Package raconfig reads the JSON in which Occlum's GRPC-RATLS programs say what a peer must be:
// dynamic_config.json of the server and the ra_config object of init_ra_conf.json.
//
// The keys are Occlum's; the reading is strict, and Occlum's fails open. A switch is "on" or "off" and nothing
// else; every switch must be there; an unknown or repeated key, a measurement of another length, a number out of
// range are errors; any number of entries counts. A file must demand at least mr_enclave, or mr_signer with
// isv_prod_id and isv_svn, must have the debug check on, and may not name the signer whose key Occlum ships to
// everybody.
//
// What the file says is kept: isv_prod_id, isv_svn, config_svn and debuggable are compared for equality, as Occlum
// does, so a newer isv_svn than the one in the file is refused, too. Stricter than Occlum, a TCB status other than
// UpToDate and a CONFIGID other than zero are refused.
//
// # Compatibility
//
// This package serves the rest of the module: its names may change in any release. The format is Occlum's.
package raconfig

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

// MaxSize bounds the text in bytes.
const MaxSize = 1 << 20

// Config is what a peer must be: any of the entries, in everything that is switched on.
type Config struct {
	// Policy holds what [policy.Policy] can express: measurements, product id, isv_svn as a minimum, debug. Its
	// TCB rules may be changed. [Config.Appraise] adds the comparisons for equality.
	Policy policy.Policy

	exact []exact // one per entry of Policy.SGX
}

// exact are the fields of an entry that are compared for equality; nil is not compared.
type exact struct {
	svn, configSVN *uint16
	debug          bool
}

// Parse reads the text of the object. The error's code is [attest.CodeConfig], and it lists everything that is
// wrong.
func Parse(text []byte) (*Config, error) {
	const hint = "Name at least mr_enclave, or mr_signer with isv_prod_id and isv_svn, and switch those checks and " +
		"verify_enclave_debuggable on."
	p := parser{}
	c := p.config(text)
	if len(p.faults) == 0 {
		if err := c.Policy.Validate(); err != nil {
			return nil, err
		}
		return c, nil
	}
	return nil, attest.Errorf(attest.CodeConfig, "reading ra_config", hint, "%s", strings.Join(p.faults, "; "))
}

// Appraise implements the appraisal of [policy.Policy] with Occlum's comparisons for equality added.
func (c *Config) Appraise(claims attest.Claims, at time.Time) policy.Appraisal {
	var refused policy.Appraisal
	for i := range c.Policy.SGX {
		one := policy.Policy{SGX: c.Policy.SGX[i : i+1], TCB: c.Policy.TCB}
		a := one.Appraise(claims, at)
		if claims.SGX != nil {
			for _, r := range c.exact[i].appraise(claims.SGX) {
				a.Accepted = a.Accepted && r.Passed
				a.Reasons = append(a.Reasons, r)
				if a.Proved && !r.Passed {
					a.Told = append(a.Told, r)
				}
			}
		}
		for _, reasons := range [][]policy.Reason{a.Reasons, a.Told} {
			for j := range reasons {
				if rule, ok := strings.CutPrefix(reasons[j].Rule, "sgx[0]."); ok {
					reasons[j].Rule = fmt.Sprintf("sgx_mrs[%d].%s", i, rule)
				}
			}
		}
		if a.Accepted {
			a.Entry = fmt.Sprintf("sgx_mrs[%d]", i)
			return a
		}
		refused.Reasons = append(refused.Reasons, a.Reasons...)
		if a.Proved && !refused.Proved {
			refused.Proved, refused.Told = true, a.Told
		}
	}
	return refused
}

func (e exact) appraise(c *attest.SGXClaims) []policy.Reason {
	var out []policy.Reason
	equal := func(name string, got uint16, want *uint16) {
		if want != nil {
			out = append(out, policy.Reason{Rule: "sgx[0]." + name, Passed: got == *want,
				Text: fmt.Sprintf("%d, compared with %d", got, *want)})
		}
	}
	equal("isv_svn", c.SVN, e.svn)
	equal("config_svn", c.ConfigSVN, e.configSVN)
	out = append(out, policy.Reason{Rule: "sgx[0].debuggable", Passed: c.Debug() == e.debug,
		Text: fmt.Sprintf("%t, compared with %t", c.Debug(), e.debug)})
	return out
}

// parser collects faults.
type parser struct{ faults []string }

func (p *parser) fault(format string, args ...any) {
	p.faults = append(p.faults, fmt.Sprintf(format, args...))
}

// switches in the order of Occlum's template.
var switches = []string{"verify_mr_enclave", "verify_mr_signer", "verify_isv_prod_id", "verify_isv_svn",
	"verify_config_svn", "verify_enclave_debuggable"}

func (p *parser) config(text []byte) *Config {
	members, err := Members(text, MaxSize)
	if err != nil {
		p.fault("%v", err)
		return nil
	}
	known := append([]string{"sgx_mrs"}, switches...)
	p.onlyKnown("", members, known)
	on := map[string]bool{}
	for _, name := range switches {
		on[name] = p.onOff(name, members[name])
	}
	if !on["verify_enclave_debuggable"] {
		p.fault(`verify_enclave_debuggable must be "on": the host reads the memory of a debug enclave`)
	}
	if !on["verify_mr_enclave"] {
		for _, name := range []string{"verify_mr_signer", "verify_isv_prod_id", "verify_isv_svn"} {
			if !on[name] {
				p.fault(`%s must be "on" where verify_mr_enclave is "off"`, name)
			}
		}
	}
	var entries []json.RawMessage
	if err := json.Unmarshal(members["sgx_mrs"], &entries); err != nil || len(entries) == 0 {
		p.fault("sgx_mrs must be a list with at least one entry")
	}
	c := &Config{}
	for i, raw := range entries {
		p.entry(c, fmt.Sprintf("sgx_mrs[%d]", i), raw, on)
	}
	return c
}

func (p *parser) onlyKnown(prefix string, members map[string]json.RawMessage, known []string) {
	for name := range members {
		found := false
		for _, k := range known {
			found = found || k == name
		}
		if !found {
			p.fault("%s%s is not a known key", prefix, name)
		}
	}
}

func (p *parser) onOff(name string, raw json.RawMessage) bool {
	switch string(raw) {
	case `"on"`:
		return true
	case `"off"`:
		return false
	case "":
		p.fault(`%s is missing, want "on" or "off"`, name)
	default:
		p.fault(`%s is %.40s, want "on" or "off"`, name, raw)
	}
	return false
}

func (p *parser) entry(c *Config, at string, raw json.RawMessage, on map[string]bool) {
	members, err := Members(raw, MaxSize)
	if err != nil {
		p.fault("%s: %v", at, err)
		return
	}
	p.onlyKnown(at+".", members, []string{"mr_enclave", "mr_signer", "isv_prod_id", "isv_svn", "config_svn", "debuggable"})
	var s policy.SGX
	var e exact
	s.MREnclave = p.measurement(at+".mr_enclave", members["mr_enclave"], on["verify_mr_enclave"])
	s.MRSigner = p.measurement(at+".mr_signer", members["mr_signer"], on["verify_mr_signer"])
	s.ProductID = p.number(at+".isv_prod_id", members["isv_prod_id"], on["verify_isv_prod_id"])
	e.svn = p.number(at+".isv_svn", members["isv_svn"], on["verify_isv_svn"])
	s.MinSVN = e.svn
	e.configSVN = p.number(at+".config_svn", members["config_svn"], on["verify_config_svn"])
	switch string(members["debuggable"]) {
	case "true":
		s.Debug, e.debug = true, true
	case "false", "": // Occlum, too, takes a missing one as false
	default:
		p.fault("%s.debuggable must be true or false", at)
	}
	c.Policy.SGX = append(c.Policy.SGX, s)
	c.exact = append(c.exact, e)
}

// measurement reads 64 hexadecimal digits. If the check is off the text may also be empty, and means nothing.
func (p *parser) measurement(name string, raw json.RawMessage, on bool) policy.Hex {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		p.fault("%s is missing or not a string", name)
		return nil
	}
	if text == "" && !on {
		return nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		p.fault("%s must be 64 hexadecimal digits", name)
		return nil
	}
	if !on {
		return nil
	}
	return b
}

func (p *parser) number(name string, raw json.RawMessage, on bool) *uint16 {
	var n *uint16
	if err := json.Unmarshal(raw, &n); err != nil || n == nil {
		p.fault("%s must be a number from 0 to 65535", name)
		return nil
	}
	if !on {
		return nil
	}
	return n
}

// Members splits the text of a JSON object into its members. Unlike [json.Unmarshal] into a map it refuses a name
// that appears twice, of which every reader may take another, and anything after the object.
func Members(text []byte, maxSize int) (map[string]json.RawMessage, error) {
	if len(text) > maxSize {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(text), maxSize)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	members := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, notJSON(d)
		}
		name, ok := t.(string)
		if !ok {
			return nil, notJSON(d)
		}
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("%q appears twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, notJSON(d)
		}
		members[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, notJSON(d)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}

// notJSON gives the place but not the cause: the decoder's messages quote characters of the text, which may be a
// secret.
func notJSON(d *json.Decoder) error {
	return fmt.Errorf("it is not valid JSON near byte %d", d.InputOffset())
}
