package maa

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// The files of Occlum's maa_init, which [TokenOnly] hands out as secrets of these names.
const (
	TokenFile = "token"        // MAA's answer, {"token":"…"}
	QuoteFile = "quote_base64" // the quote, a JSON string in standard base64
)

// MaxReportData bounds the data that a token can be made to hold, in bytes, without the label in front: less than the
// text of an RSA key of 2048 bits takes.
const MaxReportData = 256

// TokenConfig is the config of [TokenOnly].
type TokenConfig struct {
	Endpoint   string // of MAA
	ReportData []byte // what the token holds; 1 to [MaxReportData] bytes
	APIVersion string // default 2022-08-01
	Attester   attest.Attester
	Network    Network
}

// TokenOnly implements backend.Backend as the drop-in for Occlum's maa_init: it gets a token of MAA about this enclave
// and hands out token and quote, for the application to save and use. No key is released, and nothing proves that the
// data is this enclave's: if the host chooses it, the token says that this enclave runs and that someone knew that data,
// no more. So what is attested begins with a label ([reportdata.TokenRuntime]), unlike Occlum's maa_init: without it the
// host would get a quote over whatever it likes, such as a TLS key of its own.
type TokenOnly struct{ config TokenConfig }

// NewTokenOnly checks the config.
func NewTokenOnly(c TokenConfig) (*TokenOnly, error) {
	var problems kind.Problems
	c.check(false, problems.Add)
	if c.Attester == nil || c.Network.Roots == nil {
		problems.Add("attester", "is missing, or tls_roots is", "both")
	}
	if err := problems.Err("configuring maa-token"); err != nil {
		return nil, err
	}
	endpoint, err := serviceURL(c.Endpoint)
	if err != nil {
		return nil, err
	}
	c.Endpoint = endpoint.String()
	c.APIVersion = withDefault(c.APIVersion, defaultAPIVersion)
	c.Network = c.Network.complete()
	return &TokenOnly{c}, nil
}

// Name implements backend.Backend.
func (*TokenOnly) Name() string { return "maa-token" }

// Fetch implements backend.Backend: it knows the names [TokenFile] and [QuoteFile] only.
func (t *TokenOnly) Fetch(ctx context.Context, names []string) (map[string]attest.Secret, error) {
	for _, name := range names {
		if name != TokenFile && name != QuoteFile {
			return nil, attest.Errorf(attest.CodeSecret, "fetching secret "+printable(name),
				`Choose the backend "maa" to have keys released.`, "the backend maa-token releases no key")
		}
	}
	if len(names) == 0 {
		return map[string]attest.Secret{}, nil
	}
	runtime := reportdata.TokenRuntime(t.config.ReportData)
	data, err := reportdata.MAAToken.Data(runtime)
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, "making evidence", "", "%w", err)
	}
	q, err := evidence(ctx, t.config.Attester, data)
	if err != nil {
		return nil, err
	}
	token, err := askMAA(ctx, t.config.Network, t.config.Endpoint, t.config.APIVersion, q, runtimeData{runtime, "Binary"})
	if err != nil {
		return nil, err
	}
	if err := t.check(token, data, runtime, q); err != nil {
		return nil, evidenceError("checking own token", err)
	}
	t.config.Network.Logger.Warn("MAA attests: " + token.enclave() + "; the token is saved, and no key was released")
	answer, err := json.Marshal(map[string]string{"token": token.text})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{TokenFile: answer, QuoteFile: []byte(`"` + base64.StdEncoding.EncodeToString(q.raw) + `"`)}
	secrets := map[string]attest.Secret{}
	for _, name := range names {
		secrets[name] = attest.NewSecret(files[name])
	}
	return secrets, nil
}

// check compares the token with this enclave; the relying party verifies its signature.
func (t *TokenOnly) check(token *attestation, data attest.ReportData, runtime []byte, q quote) error {
	if err := token.checkIssuance(t.config.Endpoint, t.config.Network.Now()); err != nil {
		return err
	}
	c := &token.Claims
	held, err := b64.DecodeString(c.HeldData)
	switch {
	case !bytes.Equal(c.ReportData, data[:]):
		return errors.New("x-ms-sgx-report-data is not this enclave's: the token is for another quote")
	case !bytes.Equal(c.MREnclave, q.body.MREnclave[:]):
		return errors.New("x-ms-sgx-mrenclave is not this enclave's")
	case err != nil || !bytes.Equal(held, runtime):
		return errors.New("x-ms-sgx-ehd is not the runtime data that was sent")
	}
	return nil
}
