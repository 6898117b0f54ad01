package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/attest/trust"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
)

func quoteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "quote",
		Short: "Read and verify SGX and TDX quotes",
	}
	cmd.AddCommand(quoteInspectCommand(), quoteVerifyCommand())
	return cmd
}

const quoteForms = `FILE is a quote, raw or in hexadecimal or base64, a certificate in DER or PEM that carries a quote, or an Open
Enclave report.`

func quoteInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show every field of a quote, without verifying it",
		Long:  quoteForms,
		Example: `  sesame quote inspect quote.dat
  sesame quote inspect --json server.crt`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			found, err := readQuoteFile(args[0])
			if err != nil {
				return err
			}
			q, err := sgx.ParseQuote(found.raw)
			if err != nil {
				return attest.Errorf(attest.CodeEvidence, string(dcap.StepQuote), "", "%s: %w", args[0], err)
			}
			root := describeQuote(q, found.form, len(found.raw))
			if asJSON {
				return writeIndented(cmd.OutOrStdout(), root)
			}
			root.print(cmd.OutOrStdout(), 0)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: each field with hex and decoded value")
	return cmd
}

// verifyOptions are the flags of sesame quote verify.
type verifyOptions struct {
	collateral, at, rootCA, pckChain, policy string
	accept                                   []string
	allowHTTP                                bool
	pccsCA                                   string
	asJSON                                   bool
}

func quoteVerifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify FILE --collateral DIR|URL",
		Short: "Verify that a quote is genuine, and that it is accepted",
		Long: quoteForms + `

Collateral comes from a PCCS or Intel's PCS (a URL), or from a directory with the files tcb_info.json, tcb_chain.pem,
qe_identity.json, qe_chain.pem, pck_crl.der, pck_crl_chain.pem and root_ca_crl.der.

If you give no --policy, verify accepts any enclave or trust domain that is genuine, is not in debug mode, and has the
TCB status UpToDate or one that --accept names. The exit status is 0 for an accepted quote and 1 for a refused one.`,
		Example: `  sesame quote verify quote.dat --collateral collateral/
  sesame quote verify quote.dat --collateral https://api.trustedservices.intel.com --accept UpToDate,SWHardeningNeeded
  sesame quote verify quote.dat --collateral collateral/ --root-ca root_ca.pem --at 2026-01-01T12:00:00Z --json`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := verifyQuote(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			if o.asJSON {
				err = writeIndented(cmd.OutOrStdout(), v)
			} else {
				v.print(cmd.OutOrStdout())
			}
			if err == nil && v.Verdict != accepted {
				err = errQuiet
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.collateral, "collateral", "", "directory or URL of the collateral (required)")
	f.StringVar(&o.at, "at", "", "time of the verification, RFC 3339 (default now)")
	f.StringVar(&o.rootCA, "root-ca", "", "PEM file with the trusted root (default Intel's)")
	f.StringSliceVar(&o.accept, "accept", nil, "accepted TCB statuses (default UpToDate)")
	f.StringVar(&o.policy, "policy", "", "file with the policy that the quote must meet, YAML or JSON")
	f.StringVar(&o.pckChain, "pck-chain", "", "PEM file with the PCK chain, for quotes that do not carry theirs")
	f.BoolVar(&o.allowHTTP, "allow-http", false, "permit a URL without TLS; collateral is signed all the same")
	f.StringVar(&o.pccsCA, "pccs-ca", "", "PEM file with the authority of the URL's TLS certificate (default the system's)")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	return cmd
}

const (
	accepted = "accepted"
	refused  = "refused"
)

// verdict is the answer of sesame quote verify.
type verdict struct {
	Verdict          string     `json:"verdict"`
	Genuine          bool       `json:"genuine"`
	TCBStatus        string     `json:"tcb_status"`
	Advisories       []string   `json:"advisories"`
	Reason           string     `json:"reason"`
	Step             string     `json:"step"`
	EvaluationNumber uint32     `json:"evaluation_number"`
	EarliestExpiry   *time.Time `json:"earliest_expiry"`
	// Binding is the form in which a certificate binds its key, "" if there is none.
	Binding attest.Binding `json:"binding,omitempty"`
	Claims  *quoteClaims   `json:"claims"`

	hint string
}

func (v *verdict) refuse(err error) *verdict {
	v.Verdict, v.Reason, v.hint = refused, err.Error(), attest.HintOf(err)
	v.Step = string(dcap.StepOf(err))
	var e *attest.Error
	if v.Step == "" && errors.As(err, &e) {
		v.Step = e.Step
	}
	return v
}

func (v *verdict) print(w io.Writer) {
	fmt.Fprintln(w, v.Verdict+": "+v.Reason)
	if v.hint != "" {
		fmt.Fprintln(w, "hint: "+v.hint)
	}
	if !v.Genuine {
		return
	}
	fmt.Fprintf(w, "TCB status:        %s\n", v.TCBStatus)
	if len(v.Advisories) > 0 {
		fmt.Fprintf(w, "advisories:        %s\n", strings.Join(v.Advisories, " "))
	}
	fmt.Fprintf(w, "evaluation number: %d\n", v.EvaluationNumber)
	fmt.Fprintf(w, "CRL numbers:       %d root CA, %d PCK CA\n", v.Claims.RootCRL, v.Claims.PCKCRL)
	fmt.Fprintf(w, "valid at:          %s\n", v.Claims.VerifiedAt.Format(time.RFC3339))
	fmt.Fprintf(w, "earliest expiry:   %s\n", v.EarliestExpiry.Format(time.RFC3339))
	if v.Binding != "" {
		fmt.Fprintf(w, "binding of key:    %s\n", v.Binding)
	}
}

// usage makes an error with exit code 2. It must not wrap an error with a code of its own.
func usage(hint, format string, args ...any) error {
	return &attest.Error{Code: attest.CodeUsage, Err: fmt.Errorf(format, args...), Hint: hint}
}

// verifyQuote judges a quote. Its error is one of usage; whatever is wrong with quote, collateral or platform is
// in the verdict.
func verifyQuote(ctx context.Context, file string, o verifyOptions) (*verdict, error) {
	at := time.Now()
	if o.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, o.at); err != nil {
			return nil, usage("Write --at like 2026-01-01T12:00:00Z.", "%w", err)
		}
	}
	verifies, err := o.trust(at)
	if err != nil {
		return nil, err
	}
	defer verifies.Close()
	appraise, err := o.appraiser()
	if err != nil {
		return nil, err
	}
	v := &verdict{Advisories: []string{}}
	found, err := readQuoteFile(file)
	if err == nil && found.certificate != nil {
		err = found.certificate.Current(at)
	}
	switch {
	case attest.CodeOf(err) == attest.CodeUsage:
		return nil, err
	case err != nil:
		return v.refuse(err), nil
	}
	evidence := attest.Evidence{Type: attest.SGX, Raw: found.raw}
	if q, err := sgx.ParseQuote(found.raw); err == nil {
		evidence.Type = q.Type()
	}
	claims, err := verifies.Verifier().Verify(ctx, evidence, at)
	switch {
	case attest.CodeOf(err) == attest.CodeConfig:
		return nil, usage("--root-ca takes a root certificate.", "%v", err)
	case err != nil:
		return v.refuse(err), nil
	}
	v.Genuine = true
	if found.certificate != nil {
		claims.Binding = found.certificate.Binding
		v.Binding = claims.Binding
	}
	v.TCBStatus = claims.TCB.StatusName()
	v.Advisories = append(v.Advisories, claims.TCB.Advisories...)
	v.EvaluationNumber = claims.TCB.EvaluationNumber
	v.EarliestExpiry = &claims.TCB.EarliestExpiry
	v.Claims = describeClaims(claims)
	if err := appraise(claims, at).Err(); err != nil {
		return v.refuse(err), nil
	}
	v.Verdict, v.Reason = accepted, "genuine, and its TCB status "+v.TCBStatus+" is accepted"
	return v, nil
}

// trust is what the flags say about verifying. It reads the files that they name.
func (o *verifyOptions) trust(at time.Time) (*trust.Trust, error) {
	const hint = "Name with --collateral a directory, or the URL of a PCCS or of Intel's PCS."
	c := trust.Config{Collateral: trust.CollateralAt(o.collateral), Now: func() time.Time { return at }}
	c.Collateral.AllowHTTP = o.allowHTTP
	c.Collateral.Attempts = 2 // a person is waiting
	var err error
	if c.Roots, err = rootsOf(o.rootCA); err != nil {
		return nil, err
	}
	if o.pckChain != "" {
		if c.PCKChain, err = readBounded(o.pckChain); err != nil {
			return nil, usage("", "%w", err)
		}
	}
	if !c.Collateral.Given() {
		return nil, usage(hint, "no collateral is given")
	}
	if directory := c.Collateral.Directory; directory != "" {
		info, err := os.Stat(directory)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory", directory)
		}
		if err != nil {
			return nil, usage(hint, "%w", err)
		}
	}
	if o.pccsCA != "" {
		if c.Collateral.Authorities, err = pki.ReadCertificates(o.pccsCA); err != nil {
			return nil, usage("--pccs-ca takes a PEM file with certificates.", "%w", err)
		}
	}
	verifies, err := trust.New(c)
	if err != nil {
		return nil, usage(attest.HintOf(err), "%v", err)
	}
	return verifies, nil
}

// rootsOf reads the file of --root-ca, if one is given.
func rootsOf(file string) ([]*x509.Certificate, error) {
	if file == "" {
		return nil, nil
	}
	roots, err := pki.ReadCertificates(file)
	if err != nil {
		return nil, usage("--root-ca takes a PEM file with certificates.", "%w", err)
	}
	return roots, nil
}

// appraiser is the policy of the flags: that of --policy, or one that takes any environment as it is.
func (o *verifyOptions) appraiser() (func(attest.Claims, time.Time) policy.Appraisal, error) {
	if o.policy != "" {
		if o.accept != nil {
			return nil, usage("Name the statuses under tcb.accept in the policy.", "both --policy and --accept are given")
		}
		p, err := readPolicy(o.policy)
		if err != nil {
			return nil, err
		}
		return p.Appraise, nil
	}
	asItIs := func(c attest.Claims) *policy.Policy {
		p := &policy.Policy{TCB: policy.TCB{Accept: o.accept}}
		binding := c.Binding
		if binding == attest.BindingApplication {
			binding = "" // as an entry takes it without a word
		}
		if c.TDX != nil {
			p.TDX = []policy.TDX{{MRTD: c.TDX.MRTD[:], Binding: binding}}
			return p
		}
		entry := policy.SGX{MREnclave: c.SGX.MREnclave[:], Binding: binding}
		if c.SGX.Attributes&attest.AttributeKSS != 0 {
			entry.ConfigID = c.SGX.ConfigID[:]
		}
		p.SGX = []policy.SGX{entry}
		return p
	}
	if err := asItIs(attest.Claims{SGX: new(attest.SGXClaims)}).Validate(); err != nil {
		return nil, usage("--accept takes Intel's names: UpToDate, SWHardeningNeeded, ConfigurationNeeded, …", "%v", err)
	}
	return func(c attest.Claims, at time.Time) policy.Appraisal { return asItIs(c).Appraise(c, at) }, nil
}

// readServerPolicy reads a policy that judges a server.
func readServerPolicy(file string) (*policy.Policy, error) {
	p, err := readPolicy(file)
	if err != nil {
		return nil, err
	}
	if err := p.ValidateServer(); err != nil {
		return nil, usage(attest.HintOf(err), "policy %s: %v", file, err)
	}
	return p, nil
}

func readPolicy(file string) (*policy.Policy, error) {
	text, err := readBounded(file)
	if err != nil {
		return nil, usage("", "%w", err)
	}
	p := new(policy.Policy)
	if err := yaml.UnmarshalWithOptions(text, p, yaml.Strict()); err != nil {
		return nil, usage("", "policy %s: %w", file, err)
	}
	if err := p.Validate(); err != nil {
		return nil, usage(attest.HintOf(err), "policy %s: %v", file, err)
	}
	return p, nil
}

// maxInput bounds the files that are read.
const maxInput = 1 << 20

func readBounded(file string) ([]byte, error) { return boundedfile.Read(file, maxInput) }

// private is the rule for files with keys and secrets.
func private(cmd *cobra.Command) privatefile.Rule {
	return privatefile.Rule{Remark: func(remark string) { fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+remark) }}
}

// foundQuote is a quote, and in which form it was there.
type foundQuote struct {
	raw         []byte
	form        string
	certificate *ratls.Shown // that carries it, or nil
}

// readQuoteFile finds the quote in a file. A file that cannot be read is an error of usage.
func readQuoteFile(file string) (foundQuote, error) {
	b, err := readBounded(file)
	if err != nil {
		return foundQuote{}, usage("Name a readable file with a quote.", "%w", err)
	}
	return findQuote(b)
}

// findQuote recognises the forms of quoteForms. What it does not recognise it takes for a quote, and the parser
// says what is wrong with it.
func findQuote(b []byte) (foundQuote, error) {
	switch text := bytes.TrimSpace(b); {
	case bytes.HasPrefix(text, []byte("-----BEGIN")):
		block, _ := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			return foundQuote{}, attest.Errorf(attest.CodeEvidence, string(dcap.StepQuote), "", "no certificate in this PEM")
		}
		found, err := findInBinary(block.Bytes)
		found.form = "PEM, " + found.form
		return found, err
	case len(text) > 0 && bytes.IndexFunc(text, func(r rune) bool { return r > unicode.MaxASCII || r < ' ' && r != '\n' && r != '\r' }) < 0:
		for _, encoding := range []struct {
			name   string
			decode func(string) ([]byte, error)
		}{
			{"hexadecimal", hex.DecodeString},
			{"base64", base64.StdEncoding.DecodeString},
			{"base64", base64.RawStdEncoding.DecodeString},
			{"base64url", base64.URLEncoding.DecodeString},
			{"base64url", base64.RawURLEncoding.DecodeString},
		} {
			if decoded, err := encoding.decode(strings.Join(strings.Fields(string(text)), "")); err == nil {
				found, err := findInBinary(decoded)
				found.form = encoding.name + ", " + found.form
				return found, err
			}
		}
	}
	return findInBinary(b)
}

// findInBinary tells quote, Open Enclave report and certificate apart. An Open Enclave report begins with
// version 1, type 2 (SGX, remote) and the size of the quote that follows.
func findInBinary(b []byte) (foundQuote, error) {
	const oeHeader = 16
	switch {
	case len(b) > 2 && b[0] == 0x30 && b[1] >= 0x80:
		shown, err := ratls.Read(b)
		if err != nil {
			return foundQuote{}, err
		}
		return foundQuote{shown.Evidence.Raw, "certificate", &shown}, nil
	case len(b) > oeHeader && binary.LittleEndian.Uint32(b) == 1 && binary.LittleEndian.Uint32(b[4:]) == 2:
		if size := binary.LittleEndian.Uint64(b[8:]); size != uint64(len(b)-oeHeader) {
			return foundQuote{}, attest.Errorf(attest.CodeEvidence, string(dcap.StepQuote), "",
				"an Open Enclave report says that its quote has %d bytes, but %d follow", size, len(b)-oeHeader)
		}
		return foundQuote{raw: b[oeHeader:], form: "Open Enclave report"}, nil
	}
	return foundQuote{raw: b, form: "quote"}, nil
}

func writeIndented(w io.Writer, value any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}
