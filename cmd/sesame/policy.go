package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/sesame-init/sesame/attest"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/raconfig"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check, explain, sign and push the key broker's policies",
	}
	cmd.AddCommand(policyCheckCommand(), policyExplainCommand(), policyKeygenCommand(), policySignCommand(), policyPushCommand())
	return cmd
}

func policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check POLICY",
		Short:   "Report every error in a policy",
		Example: "  sesame policy check policy.yaml",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readBrokerPolicy(cmd.ErrOrStderr(), args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "sound: version %d, %d workloads, %d secrets\n",
				p.Version, len(p.Workloads), len(p.Secrets))
			return nil
		},
	}
}

// readBrokerPolicy reads a policy, or Occlum's dynamic_config.json by its ending. What is wrong is printed, a line each.
func readBrokerPolicy(stderr io.Writer, file string) (*policy.Policy, error) {
	text, err := readBounded(file)
	if err != nil {
		return nil, usage("Name a readable policy.", "%w", err)
	}
	if filepath.Ext(file) == ".json" {
		peers, err := raconfig.Parse(text)
		if err != nil {
			return nil, err
		}
		return policy.Occlum(filepath.Base(file), peers), nil
	}
	p, err := policy.Parse(text)
	var faults policy.Faults
	if errors.As(err, &faults) {
		for _, f := range faults {
			fmt.Fprintln(stderr, f)
		}
		return nil, attest.Errorf(attest.CodeConfig, "reading policy "+file, attest.HintOf(err), "it has %d faults", len(faults))
	}
	return p, err
}

// explainOptions are the flags of sesame policy explain.
type explainOptions struct {
	policy, quote, secret  string
	collateral, rootCA, at string
	asJSON                 bool
}

func policyExplainCommand() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain --policy POLICY --quote FILE",
		Short: "Show rule by rule what a policy decides about a quote",
		Long: `explain verifies a quote as the key broker would and prints each rule of the policy with pass or FAIL: the rules of
every workload and, if you name one, of the secret. Only the broker knows how often a secret was released. ` + quoteForms + `
POLICY is a policy of the broker in YAML, or Occlum's dynamic_config.json. Collateral comes from the source that the
policy names, or from --collateral.

The exit status is 0 if the broker would accept the peer, and release the secret to it, 1 if not, and 2 for wrong usage.`,
		Example: `  sesame policy explain --policy policy.yaml --quote quote.dat --secret model_key
  sesame policy explain --policy policy.yaml --quote quote.dat --collateral collateral/ --json`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := explainPolicy(cmd, o)
			if err != nil {
				return err
			}
			if o.asJSON {
				err = writeIndented(cmd.OutOrStdout(), e)
			} else {
				e.print(cmd.OutOrStdout())
			}
			if err == nil && !e.Accepted {
				err = errQuiet
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.policy, "policy", "", "the policy (required)")
	f.StringVar(&o.quote, "quote", "", "the quote (required)")
	f.StringVar(&o.secret, "secret", "", "name of the requested secret")
	f.StringVar(&o.collateral, "collateral", "", "directory or URL of the collateral, instead of the policy's")
	f.StringVar(&o.rootCA, "root-ca", "", "PEM file with the trusted root, instead of the policy's")
	f.StringVar(&o.at, "at", "", "time of the decision, RFC 3339 (default now)")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	return cmd
}

// explanation is a decision of the policy with the steps before it.
type explanation struct {
	Genuine bool   `json:"genuine"`
	Reason  string `json:"reason,omitempty"` // why it is not genuine
	policy.Explanation

	hint string
}

func (e *explanation) print(w io.Writer) {
	if !e.Genuine {
		fmt.Fprintf(w, "FAIL  evidence: %s\nrefused: the evidence does not count\n", e.Reason)
		if e.hint != "" {
			fmt.Fprintln(w, "hint: "+e.hint)
		}
		return
	}
	fmt.Fprintln(w, "pass  evidence: the quote is genuine")
	for _, r := range e.Rules {
		word := "FAIL"
		if r.Passed {
			word = "pass"
		}
		fmt.Fprintf(w, "%s  %s: %s\n", word, r.Rule, r.Text)
	}
	switch {
	case !e.Accepted && e.Secret != "":
		fmt.Fprintf(w, "refused: the peer may not have %s\n", e.Secret)
	case !e.Accepted:
		fmt.Fprintln(w, "refused: the peer is no workload of this policy")
	case e.Secret != "":
		fmt.Fprintf(w, "accepted: the peer may have %s\n", e.Secret)
	case len(e.Secrets) > 0:
		fmt.Fprintf(w, "accepted: the peer is %s and may have %s\n", strings.Join(e.Workloads, ", "), strings.Join(e.Secrets, ", "))
	default:
		fmt.Fprintf(w, "accepted: the peer is %s\n", strings.Join(e.Workloads, ", "))
	}
}

func explainPolicy(cmd *cobra.Command, o explainOptions) (*explanation, error) {
	at := time.Now()
	if o.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, o.at); err != nil {
			return nil, usage("Write --at like 2026-01-01T12:00:00Z.", "%w", err)
		}
	}
	if o.policy == "" || o.quote == "" {
		return nil, usage("Give --policy and --quote.", "the policy or the quote is not named")
	}
	p, err := readBrokerPolicy(cmd.ErrOrStderr(), o.policy)
	if err != nil {
		return nil, err
	}
	found, err := readQuoteFile(o.quote)
	if err != nil {
		return nil, err
	}
	if c := found.certificate; c != nil { // as a peer on the legacy wire shows it
		if err = c.Current(at); err == nil {
			err = c.LegacyWire()
		}
		if err != nil {
			return notEvidence(err), nil
		}
	}
	trust, err := o.trust(p.Trust, at)
	if err != nil {
		return nil, err
	}
	defer trust.Close()
	evidence := attest.Evidence{Type: attest.SGX, Raw: found.raw}
	if q, err := sgx.ParseQuote(found.raw); err == nil {
		evidence.Type = q.Type()
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
	defer cancel()
	claims, err := trust.Verifier.Verify(ctx, evidence, at)
	if err != nil {
		return notEvidence(err), nil
	}
	return &explanation{Genuine: true, Explanation: p.Explain(claims, at, o.secret)}, nil
}

func notEvidence(err error) *explanation {
	e := &explanation{Reason: err.Error(), hint: attest.HintOf(err)}
	e.Rules = []appraisal.Reason{{Rule: "evidence", Text: err.Error()}}
	return e
}

func (o *explainOptions) trust(t policy.Trust, at time.Time) (*broker.Trust, error) {
	if o.collateral != "" {
		t.Collateral = policy.CollateralAt(o.collateral)
	}
	if t.Collateral.URL == "" && t.Collateral.Directory == "" {
		return nil, usage("Name it with --collateral.", "the policy names no source of collateral")
	}
	if o.rootCA != "" {
		certificates, err := pki.ReadCertificates(o.rootCA)
		if err != nil {
			return nil, usage("--root-ca takes a PEM file with certificates.", "%w", err)
		}
		t.Roots = nil
		for _, c := range certificates {
			t.Roots = append(t.Roots, string(pki.EncodeCertificate(c.Raw)))
		}
	}
	return broker.NewTrust(t, func() time.Time { return at }, nil)
}

func policyKeygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen NAME FILE",
		Short: "Make a key that signs policies",
		Long: `keygen makes an Ed25519 key and writes it to FILE, which must not exist. It prints the line that pins the key: the
value of broker.policy_key in the measured policy of a broker in an enclave. NAME identifies the key in logs.`,
		Example: "  sesame policy keygen policy.example policy.key",
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" || strings.ContainsAny(args[0], "+ \t\n") {
				return usage("Name it like policy.example.", "%q is no name of a key: it has a plus or a blank", args[0])
			}
			key, public, err := note.GenerateKey(rand.Reader, args[0])
			if err != nil {
				return attest.Errorf(attest.CodeInternal, "making a key", "", "%w", err)
			}
			if err := privatefile.Create(args[1], []byte(key+"\n")); err != nil {
				return &attest.Error{Code: attest.CodeConfig, Step: "writing the key", Err: err}
			}
			fmt.Fprintln(cmd.OutOrStdout(), public)
			return nil
		},
	}
}

func policySignCommand() *cobra.Command {
	var keyFile, out string
	cmd := &cobra.Command{
		Use:   "sign --key FILE POLICY",
		Short: "Sign a policy for a broker in an enclave",
		Long: `sign checks a policy and prints it with a signature below (a note of golang.org/x/mod/sumdb/note). If the broker's
measured policy pins the key, and the version is higher than any before, the broker accepts it with --signed-policy.`,
		Example: "  sesame policy sign --key policy.key --out policy.signed policy.yaml",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readBrokerPolicy(cmd.ErrOrStderr(), args[0])
			if err != nil {
				return err
			}
			if p.Text() == nil {
				return usage("Write a policy in YAML.", "Occlum's files have no version, so they cannot be signed")
			}
			key, err := private(cmd).Read(keyFile, maxInput)
			if err != nil {
				return usage("Name with --key what sesame policy keygen wrote.", "%w", err)
			}
			defer clear(key)
			signer, err := note.NewSigner(strings.TrimSpace(string(key)))
			if err != nil {
				return attest.Errorf(attest.CodeConfig, "reading the key", "It is the file that sesame policy keygen wrote.", "%w", err)
			}
			text := string(p.Text())
			if !strings.HasSuffix(text, "\n") {
				text += "\n"
			}
			signed, err := note.Sign(&note.Note{Text: text}, signer)
			if err != nil {
				return attest.Errorf(attest.CodeConfig, "signing", "A signed policy is UTF-8 without tabs.", "%w", err)
			}
			if out == "" {
				_, err = cmd.OutOrStdout().Write(signed)
				return err
			}
			// The broker follows the file: it must never see half of it.
			if err := os.WriteFile(out+".new", signed, 0o644); err != nil {
				return &attest.Error{Code: attest.CodeConfig, Step: "writing", Err: err}
			}
			if err := os.Rename(out+".new", out); err != nil {
				return &attest.Error{Code: attest.CodeConfig, Step: "writing", Err: err}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "the key (required)")
	cmd.Flags().StringVar(&out, "out", "", "file to write; default: standard output")
	return cmd
}
