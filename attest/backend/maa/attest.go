package maa

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

// attestation is a token of MAA about this enclave, and what it says.
type attestation struct {
	*Token
	text string
}

// enclave describes the enclave as the token does, to compare with a policy. Nothing in it is secret.
func (a *attestation) enclave() string {
	c := &a.Claims
	number := func(n *uint16) string {
		if n == nil {
			return "not given"
		}
		return fmt.Sprint(*n)
	}
	return fmt.Sprintf("authority %s, mrenclave %x, mrsigner %x, product id %s, SVN %s, debug %t", printable(c.Issuer),
		[]byte(c.MREnclave), []byte(c.MRSigner), number(c.ProductID), number(c.SVN), c.Debuggable == nil || *c.Debuggable)
}

// attest gets a token for the wrapping key and compares it with this enclave.
func (b *Backend) attest(ctx context.Context, key wrappingKey) (*attestation, error) {
	data, err := key.reportData()
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, "making evidence", "", "%w", err)
	}
	quote, err := evidence(ctx, b.config.Attester, data)
	if err != nil {
		return nil, err
	}
	token, err := askMAA(ctx, b.config.Network, b.config.Endpoint, b.config.APIVersion, quote, runtimeData{key.runtime, "JSON"})
	if err != nil {
		return nil, err
	}
	if err := token.selfCheck(b.config.Endpoint, b.config.Network.Now(), key, data, quote); err != nil {
		return nil, err
	}
	b.config.Network.Logger.Info("MAA attests: " + token.enclave())
	return token, nil
}

// quote is a quote of this enclave as MAA takes it, without padding.
type quote struct {
	raw  []byte
	body *sgx.ReportBody
}

// evidence makes a quote and makes sure that it is this enclave's and one that MAA can take.
func evidence(ctx context.Context, attester attest.Attester, data attest.ReportData) (quote, error) {
	fail := func(hint, format string, args ...any) (quote, error) {
		return quote{}, attest.Errorf(attest.CodeAttester, "making evidence", hint, format, args...)
	}
	e, err := attester.Evidence(ctx, data)
	switch {
	case ctx.Err() != nil: // making the wrapping key may have taken seconds
		return quote{}, attest.Errorf(attest.CodeUnreachable, "making evidence", "Give the boot more time by timeout in the config.", "%w", ctx.Err())
	case err != nil:
		return quote{}, err
	}
	q, err := sgx.ParseQuote(e.Raw)
	switch {
	case err != nil:
		return fail("The host's quote provider gives no DCAP quote; reinstall it.", "%w", err)
	case q.SGX == nil || q.Version != 3:
		return fail("MAA takes SGX quotes of version 3 here.", "the evidence is a quote of version %d for another use", q.Version)
	case q.SGX.ReportData != data:
		return fail("Attest again; the host returned a quote that was made for something else.", "the quote does not bind the report data that was asked for")
	case q.CertType != sgx.CertPCKChain:
		return fail("Install Azure's quote provider library (az-dcap-client) on the node instead of Intel's default one.",
			"the quote carries no certificate chain (certification data of type %d), and MAA takes none without", q.CertType)
	}
	return quote{raw: e.Raw[:len(e.Raw)-len(q.Trailing)], body: q.SGX}, nil
}

// runtimeData is what the quote binds by its SHA-256, and how MAA is to read it: "JSON" or "Binary".
type runtimeData struct {
	data []byte
	kind string
}

// askMAA sends a quote to MAA. The token it returns is parsed, and nothing more.
func askMAA(ctx context.Context, n Network, endpoint, version string, q quote, r runtimeData) (*attestation, error) {
	body, err := json.Marshal(map[string]any{
		"quote":       b64.EncodeToString(q.raw),
		"runtimeData": map[string]string{"data": b64.EncodeToString(r.data), "dataType": r.kind},
	})
	if err != nil {
		return nil, err
	}
	answer, err := n.do(ctx, call{
		service: "MAA", method: http.MethodPost,
		url:    endpoint + "/attest/SgxEnclave?api-version=" + url.QueryEscape(version),
		header: http.Header{"Content-Type": {"application/json"}},
		body:   body, advise: adviseAttest,
	})
	if err != nil {
		return nil, err
	}
	var got struct {
		Token string `json:"token"`
	}
	if err := decodeJSON(answer, &got); err != nil || got.Token == "" {
		return nil, attest.Errorf(attest.CodeEvidence, "asking MAA", "Is maa.endpoint the address of an MAA instance?",
			"the answer holds no token")
	}
	token, err := ParseToken(got.Token)
	if err != nil {
		return nil, err
	}
	return &attestation{Token: token, text: got.Token}, nil
}

// adviseAttest knows MAA's refusals (specification of Azure Attestation's REST API, and what the service says).
func adviseAttest(status int, e serviceError) (attest.Code, string) {
	switch {
	case e.is("PolicyEvaluationError"):
		return attest.CodeDenied, "The instance's attestation policy does not permit this enclave: compare its rules with mrenclave, " +
			"mrsigner, product id, SVN and debug flag."
	case e.is("PolicyParsingError"), e.is("InvalidOperation"):
		return attest.CodeDenied, "The instance's attestation policy is broken, or the instance does not do this; its owner must look at it."
	case e.is("InvalidParameter"), e.is("InvalidQuote"), status == http.StatusBadRequest:
		return attest.CodeDenied, "MAA rejects this quote: it requires an Azure confidential node, a TCB at Azure's baseline, and Azure's " +
			"quote provider library (az-dcap-client) on it, which puts the certificate chain into the quote."
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return attest.CodeDenied, "Attesting needs no permission: something between the enclave and MAA refuses, or maa.endpoint is no MAA instance."
	case status == http.StatusNotFound:
		return attest.CodeConfig, "Check maa.endpoint and maa.api_version: the service knows no such address."
	}
	return attest.CodeDenied, "Is maa.endpoint the address of an MAA instance?"
}

// selfCheck compares a fresh token with what this enclave knows of itself. Key Vault judges the token; this turns
// its opaque 403 into a reason. The signature is Key Vault's to check.
func (t *Token) selfCheck(issuer string, now time.Time, key wrappingKey, data attest.ReportData, q quote) error {
	const step = "checking own token"
	if err := t.checkIssuance(issuer, now); err != nil {
		return evidenceError(step, err)
	}
	c := &t.Claims
	switch {
	case !bytes.Equal(c.ReportData, data[:]):
		return evidenceError(step, errors.New("x-ms-sgx-report-data is not this enclave's: the token is for another quote"))
	case !bytes.Equal(c.MREnclave, q.body.MREnclave[:]):
		return evidenceError(step, errors.New("x-ms-sgx-mrenclave is not this enclave's"))
	case c.Runtime == nil || len(c.Runtime.Keys) == 0:
		return evidenceError(step, errors.New("x-ms-runtime has no keys: nothing could be wrapped for this enclave"))
	case c.Runtime.Keys[0].N != key.n || c.Runtime.Keys[0].KID != key.id:
		return evidenceError(step, errors.New("x-ms-runtime holds another key than this enclave's"))
	case c.Debuggable == nil || *c.Debuggable:
		return attest.Errorf(attest.CodePolicy, step, `Build with "debuggable": false in Occlum.json.`,
			"this enclave is a debug enclave, or the token does not say")
	}
	return nil
}
