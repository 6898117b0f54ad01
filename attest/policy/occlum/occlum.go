// Package occlum reads the peer policy that Occlum's GRPC-RATLS programs take: the server's dynamic_config.json
// and the ra_config object of init_ra_conf.json, which have one shape.
//
// The file is read as it is, but strictly. Every switch must be given and be exactly "on" or "off" (Occlum takes
// any other word for off); unknown keys are refused; numbers must be numbers. isv_svn and config_svn are
// minimums here, where Occlum compares for equality, so that a peer may be patched without a new file here. A
// policy that pins less than the minimum of package policy, or leaves the debug check off, is refused with the
// field to fill in.
//
// Source of the format: Occlum 0.31, tools/toolchains/grpc_ratls, functions parse_config_json and
// verify_measurement.
package occlum

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/policy"
)

// MaxSize bounds the text, in bytes; MaxEntries the list of measurements.
const (
	MaxSize    = 1 << 20
	MaxEntries = 1024
)

// Switch is "on" or "off".
type Switch struct{ On, given bool }

// UnmarshalJSON accepts the two words only.
func (s *Switch) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"on"`:
		*s = Switch{On: true, given: true}
	case `"off"`:
		*s = Switch{given: true}
	default:
		return fmt.Errorf("%s is neither \"on\" nor \"off\"", b)
	}
	return nil
}

// List is the file.
type List struct {
	MREnclave  Switch        `json:"verify_mr_enclave"`
	MRSigner   Switch        `json:"verify_mr_signer"`
	ProductID  Switch        `json:"verify_isv_prod_id"`
	SVN        Switch        `json:"verify_isv_svn"`
	ConfigSVN  Switch        `json:"verify_config_svn"`
	Debuggable Switch        `json:"verify_enclave_debuggable"`
	Entries    []Measurement `json:"sgx_mrs"`
}

// Measurement is one accepted peer; a switch that is off keeps its field from being compared.
type Measurement struct {
	MREnclave  *string `json:"mr_enclave"`
	MRSigner   *string `json:"mr_signer"`
	ProductID  *uint16 `json:"isv_prod_id"`
	SVN        *uint16 `json:"isv_svn"`
	ConfigSVN  *uint16 `json:"config_svn"`
	Debuggable bool    `json:"debuggable"`
}

// Parse reads the text and returns the policy that it means. The error has code [attest.CodeConfig] and joins
// everything that is wrong.
func Parse(text []byte) (policy.Policy, error) {
	var list List
	if len(text) > MaxSize {
		return policy.Policy{}, refuse(fmt.Errorf("has %d bytes, more than %d", len(text), MaxSize))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&list); err != nil {
		return policy.Policy{}, refuse(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return policy.Policy{}, refuse(errors.New("has something after the closing brace"))
	}
	p, err := list.Policy()
	if err != nil {
		return policy.Policy{}, refuse(err)
	}
	return p, nil
}

func refuse(err error) error {
	return &attest.Error{
		Code: attest.CodeConfig, Step: "reading Occlum's peer policy", Err: err,
		Hint: "Set verify_mr_enclave, or verify_mr_signer with verify_isv_prod_id and verify_isv_svn, to \"on\", " +
			"verify_enclave_debuggable to \"on\", and fill in the fields in every entry of sgx_mrs.",
	}
}

// Policy is what the list means; the error joins everything that is wrong with it.
func (l *List) Policy() (policy.Policy, error) {
	var bad []error
	for _, s := range []struct {
		name string
		Switch
	}{
		{"verify_mr_enclave", l.MREnclave},
		{"verify_mr_signer", l.MRSigner},
		{"verify_isv_prod_id", l.ProductID},
		{"verify_isv_svn", l.SVN},
		{"verify_config_svn", l.ConfigSVN},
		{"verify_enclave_debuggable", l.Debuggable},
	} {
		if !s.given {
			bad = append(bad, fmt.Errorf("%s is missing: write \"on\" or \"off\"", s.name))
		}
	}
	if l.Debuggable.given && !l.Debuggable.On {
		bad = append(bad, errors.New(`verify_enclave_debuggable is "off": the host could read a debug enclave; write "on"`))
	}
	if len(l.Entries) == 0 || len(l.Entries) > MaxEntries {
		bad = append(bad, fmt.Errorf("sgx_mrs has %d entries, want 1 to %d", len(l.Entries), MaxEntries))
	}
	var p policy.Policy
	for i, m := range l.Entries[:min(len(l.Entries), MaxEntries)] {
		entry, err := l.entry(m)
		if err != nil {
			bad = append(bad, fmt.Errorf("sgx_mrs[%d]: %w", i, err))
		}
		p.SGX = append(p.SGX, entry)
	}
	if len(bad) == 0 {
		if err := p.Validate(); err != nil {
			bad = append(bad, err)
		}
	}
	return p, errors.Join(bad...)
}

func (l *List) entry(m Measurement) (policy.SGX, error) {
	var bad []error
	hash := func(on Switch, name string, value *string) policy.Hex {
		if !on.On {
			return nil
		}
		var h policy.Hex
		if value == nil {
			bad = append(bad, fmt.Errorf("%s is missing", name))
		} else if err := h.UnmarshalText([]byte(*value)); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", name, err))
		}
		return h
	}
	number := func(on Switch, name string, value *uint16) *uint16 {
		if !on.On {
			return nil
		}
		if value == nil {
			bad = append(bad, fmt.Errorf("%s is missing", name))
		}
		return value
	}
	return policy.SGX{
		MREnclave:    hash(l.MREnclave, "mr_enclave", m.MREnclave),
		MRSigner:     hash(l.MRSigner, "mr_signer", m.MRSigner),
		ProductID:    number(l.ProductID, "isv_prod_id", m.ProductID),
		MinSVN:       number(l.SVN, "isv_svn", m.SVN),
		MinConfigSVN: number(l.ConfigSVN, "config_svn", m.ConfigSVN),
		Debug:        m.Debuggable,
	}, errors.Join(bad...)
}
