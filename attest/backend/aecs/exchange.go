package aecs

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/aecs/envelope"
	"github.com/sesame-init/sesame/internal/aecs/uar"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// identity is what this environment shows of itself in one Fetch.
type identity struct {
	key    *rsa.PrivateKey
	report *wire.UnifiedAttestationAuthReport
}

// attest makes a key, and a report of evidence that binds it.
func (c *Client) attest(ctx context.Context) (_ *identity, err error) {
	const step = "making evidence"
	key, err := c.config.NewKey()
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	defer func() {
		if err != nil {
			attest.WipeRSA(key)
		}
	}()
	text := uar.PublicKeyPEM(&key.PublicKey)
	var userData [uar.UserDataSize]byte
	copy(userData[:], c.config.UserData)
	data, err := reportdata.AECS.DataAfter(userData, []byte(text))
	if err != nil {
		return nil, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	evidence, err := c.config.Attester.Evidence(ctx, data)
	switch {
	case ctx.Err() != nil:
		return nil, attest.Errorf(attest.CodeUnreachable, step, "Raise the timeout: it ended before any server was asked.",
			"%w", ctx.Err())
	case err != nil:
		return nil, &attest.Error{Code: attest.CodeAttester, Step: step, Err: err}
	}
	var collateral *wire.SgxQlQveCollateral
	if c.config.Collateral != nil {
		if collateral, err = c.collateral(ctx, evidence); err != nil {
			return nil, err
		}
	}
	report, err := uar.Make(evidence, text, collateral)
	if err == nil {
		_, err = uar.Read(report)
	}
	if err != nil {
		return nil, attest.Errorf(attest.CodeAttester, step,
			"Look at the platform's attestation service (AESM) and its quotes.", "%w", err)
	}
	return &identity{key: key, report: report}, nil
}

func (c *Client) collateral(ctx context.Context, e attest.Evidence) (*wire.SgxQlQveCollateral, error) {
	const step = "finding collateral for our own quote"
	request, err := dcap.RequestFor(e.Raw)
	if err != nil {
		return nil, attest.Errorf(attest.CodeAttester, step,
			"Let the platform's quote provider put the PCK certificate chain into its quotes (certification data type 5).",
			"%w", err)
	}
	found, err := c.config.Collateral.Collateral(ctx, request)
	if err != nil {
		return nil, &attest.Error{Code: attest.CodeOf(err), Step: step, Err: err}
	}
	collateral, err := uar.Collateral(found, e.Type)
	if err != nil {
		return nil, attest.Errorf(attest.CodeCollateral, step, "Look at the PCCS.", "%w", err)
	}
	return collateral, nil
}

// exchange is what is said over one connection.
type exchange struct {
	config     *Config
	self       *identity
	link       *link
	generation Generation

	// shown is the server's report that was verified last, and server what it says: most servers show the same one with
	// every answer.
	shown  *wire.UnifiedAttestationAuthReport
	server *uar.Report
}

// get fetches one secret.
func (e *exchange) get(ctx context.Context, w secretQuery) (attest.Secret, error) {
	nonce, err := e.nonce()
	if err != nil {
		return attest.Secret{}, err
	}
	var secret attest.Secret
	if e.generation == GenerationA {
		secret, err = e.getA(ctx, w, nonce)
	} else {
		secret, err = e.getB(ctx, w, nonce)
	}
	if errors.Is(err, errUnimplemented) {
		if e.generation == Auto && e.config.AllowDowngrade {
			e.config.Logger.Warn("the AECS does not speak generation B: falling to A, " +
				"whose answers are not bound to their requests")
			e.generation = GenerationA
			return e.get(ctx, w)
		}
		return attest.Secret{}, e.wrongGeneration(err)
	}
	if err != nil {
		return attest.Secret{}, err
	}
	if e.generation == Auto {
		e.generation = GenerationB // it has answered; from here on it stays with that generation
	}
	return w.decode(secret)
}

func (e *exchange) wrongGeneration(err error) error {
	hint := `The server speaks generation A: write aecs.generation "a", or "auto" with allow_downgrade; ` +
		"docs/backends/aecs.md says what A does not protect."
	if e.generation == GenerationA {
		hint = `Does the server speak generation B? Then write aecs.generation "b". Or it is no AECS.`
	}
	refusal := attest.Errorf(attest.CodeDenied, "calling the server", hint, "%w", err)
	if !e.link.proved {
		return unproved(refusal)
	}
	return refusal
}

func (e *exchange) nonce() (string, error) {
	b := make([]byte, nonceSize)
	if _, err := io.ReadFull(e.config.Rand, b); err != nil {
		return "", attest.Errorf(attest.CodeInternal, "making a nonce", "", "%w", err)
	}
	return hex.EncodeToString(b), nil
}

func (e *exchange) requestA(w secretQuery, nonce string) *wire.GetEnclaveSecretRequest {
	return &wire.GetEnclaveSecretRequest{AuthRaReport: e.self.report, ServiceName: w.Service, SecretName: w.Name,
		Nonce: nonce}
}

func (e *exchange) getA(ctx context.Context, w secretQuery, nonce string) (attest.Secret, error) {
	answer, err := wire.NewAecsClient(e.link.rpc).GetEnclaveSecret(ctx, e.requestA(w, nonce))
	if err != nil {
		return attest.Secret{}, e.link.explain(ctx, err)
	}
	return e.openA(ctx, answer, w, nonce)
}

// openA takes the secret out of an answer of generation A.
func (e *exchange) openA(ctx context.Context, answer *wire.GetEnclaveSecretResponse, w secretQuery,
	nonce string) (attest.Secret, error) {
	server, err := e.verifyServer(ctx, answer.GetAuthRaReport())
	if err != nil {
		return attest.Secret{}, err
	}
	secret, err := envelope.Open(answer.GetSecretEnc(), e.self.key, nonce, server.PublicKey, w.limit())
	switch {
	case !errors.Is(err, envelope.ErrAAD):
		return secret, openError(err)
	case string(answer.GetSecretEnc().GetAesCipher().GetAad()) == envelope.Enclave:
		return secret, attest.Errorf(attest.CodeEvidence, stepOpen,
			"A server from before 2023-03-24 knows no nonces: update it.", "the answer ignores our nonce")
	}
	return secret, openError(errNonce)
}

var errNonce = errors.New("the answer has another nonce than the request: it was made for another one")

const stepOpen = "opening the server's answer"

func openError(err error) error {
	if err == nil {
		return nil
	}
	return attest.Errorf(attest.CodeEvidence, stepOpen,
		"Something on the way changes or replays answers, or the server is not what it seems.", "%w", err)
}

func (e *exchange) requestB(w secretQuery, nonce string) (*wire.TaRemoteCallRequest, error) {
	text, err := wire.JSON(&wire.TaGetSecretRequest{ServiceName: w.Service, SecretName: w.Name, Nonce: nonce})
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(nil, e.self.key, crypto.SHA256, digest[:])
	if err != nil {
		return nil, err
	}
	return &wire.TaRemoteCallRequest{
		AuthReport: e.self.report, FunctionName: wire.TaGetSecret,
		ReqJson: text, SignatureB64: base64.StdEncoding.EncodeToString(signature),
	}, nil
}

func (e *exchange) getB(ctx context.Context, w secretQuery, nonce string) (attest.Secret, error) {
	request, err := e.requestB(w, nonce)
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeInternal, "making a request", "", "%w", err)
	}
	answer, err := wire.NewAecsClient(e.link.rpc).TaRemoteCall(ctx, request)
	if err != nil {
		return attest.Secret{}, e.link.explain(ctx, err)
	}
	return e.openB(ctx, answer, w, nonce)
}

// openB takes the secret out of an answer of generation B.
func (e *exchange) openB(ctx context.Context, answer *wire.TaRemoteCallResponse, w secretQuery,
	nonce string) (attest.Secret, error) {
	none := attest.Secret{}
	server, err := e.verifyServer(ctx, answer.GetAuthReport())
	if err != nil {
		return none, err
	}
	signature, err := base64.StdEncoding.DecodeString(answer.GetSignatureB64())
	digest := sha256.Sum256([]byte(answer.GetResJson()))
	if err != nil || rsa.VerifyPKCS1v15(server.PublicKey, crypto.SHA256, digest[:], signature) != nil {
		return none, openError(errors.New("the answer is not signed by the server's key"))
	}
	var inner wire.TaGetSecretResponse
	if err := wire.Parse(answer.GetResJson(), &inner); err != nil {
		return none, openError(err)
	}
	if subtle.ConstantTimeCompare([]byte(inner.GetNonce()), []byte(nonce)) != 1 {
		return none, openError(errNonce)
	}
	const overhead = 64 << 10 // names, policy and parameters of the secret
	plain, err := envelope.Open(inner.GetSecretEnc(), e.self.key, envelope.Enclave, server.PublicKey, w.limit()*6+overhead)
	if err != nil {
		return none, openError(err)
	}
	defer plain.Wipe()
	var secret wire.EnclaveSecret
	if err := wire.Parse(string(plain.Expose()), &secret); err != nil {
		return none, openError(err)
	}
	return w.check(&secret)
}

// check compares what has come with what was asked for.
func (w secretQuery) check(s *wire.EnclaveSecret) (attest.Secret, error) {
	const step = "reading the secret"
	const hint = "Look at the server's storage: it returned another secret than the one asked for."
	spec := s.GetSpec()
	kind := strings.TrimPrefix(spec.GetType().String(), typePrefix)
	switch {
	case spec.GetSecretName() != w.Name:
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, step, hint, "the server has sent secret %s",
			clean(spec.GetSecretName()))
	case spec.GetServiceName() != w.Service:
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, step, hint, "the server has sent a secret of service %s",
			clean(spec.GetServiceName()))
	case w.Type != "" && kind != w.Type:
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, step, hint, "the secret is of type %s, want %s", kind,
			w.Type)
	case len(s.GetData()) == 0 || len(s.GetData()) > w.limit():
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, step, "Store a smaller secret.",
			"it has %d bytes, want 1 to %d", len(s.GetData()), w.limit())
	}
	return attest.NewSecret([]byte(s.GetData())), nil
}

// limit is the largest size of the secret's text in bytes.
func (w secretQuery) limit() int {
	if w.Name == imageKey {
		return MaxImageKey
	}
	return MaxSecret
}

// decode takes the base64 off a secret that has it.
func (w secretQuery) decode(s attest.Secret) (attest.Secret, error) {
	if !w.Base64 {
		return s, nil
	}
	defer s.Wipe()
	text := s.Expose()
	for len(text) > 0 && (text[len(text)-1] == '\n' || text[len(text)-1] == '\r') {
		text = text[:len(text)-1]
	}
	b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(b, text)
	if err != nil || slices.Contains(text, '\n') {
		clear(b)
		return attest.Secret{}, attest.Errorf(attest.CodeSecret, "reading the secret",
			"Store it as standard base64 on one line, or take the encoding out of the config.", "it is not standard base64")
	}
	return attest.NewSecret(b[:n]), nil
}

const typePrefix = "SECRET_TYPE_"

func typeNames() string {
	var names []string
	for name := range wire.EnclaveSecretType_value {
		names = append(names, strings.TrimPrefix(name, typePrefix))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// verifyServer decides whether the one who has answered is the server that the config wants.
func (e *exchange) verifyServer(ctx context.Context, shown *wire.UnifiedAttestationAuthReport) (*uar.Report, error) {
	if e.server != nil && proto.Equal(shown, e.shown) {
		return e.server, nil
	}
	const step = "verifying the server"
	report, err := uar.Read(shown)
	if err != nil {
		return nil, attest.Errorf(attest.CodeEvidence, step, "Is this the address of an AECS?", "%w", err)
	}
	if pin := e.config.ServerKey; pin != nil && subtle.ConstantTimeCompare(pin[:], report.Fingerprint[:]) != 1 {
		return nil, attest.Errorf(attest.CodePolicy, step,
			"Compare aecs.server_key with identity_hash of aecsadmin status; a server that is made anew has another key.",
			"the server's key has the fingerprint %X, want %X", report.Fingerprint, pin[:])
	}
	if !e.config.NoServerEvidence {
		if err := e.verifyEvidence(ctx, report); err != nil {
			return nil, &attest.Error{Code: attest.CodeOf(err), Step: step, Err: err}
		}
	}
	e.shown, e.server = shown, report
	return report, nil
}

func (e *exchange) verifyEvidence(ctx context.Context, report *uar.Report) error {
	const step = "reading the server's report"
	evidence, err := report.Evidence()
	if err != nil {
		return attest.Errorf(attest.CodeEvidence, step, "Use a server that runs in an enclave. For a trial, "+
			`pin the key of a simulated one: aecs.server_key, with server_evidence "none".`, "%w", err)
	}
	at := e.config.Now()
	claims, err := e.verify(ctx, evidence, report)
	if err != nil {
		return err
	}
	if claims.ReportData != report.Data() {
		return attest.Errorf(attest.CodeEvidence, step, "", "%w", uar.ErrBinding)
	}
	return e.config.Policy.Appraise(claims, at).Err()
}

// verify takes the collateral in the server's passport, and our own if that is no good: a server makes its passport
// once, and may run for longer than its collateral is valid.
func (e *exchange) verify(ctx context.Context, evidence attest.Evidence, report *uar.Report) (attest.Claims, error) {
	at := e.config.Now()
	if report.Collateral != nil && e.config.Staple != nil {
		claims, err := e.config.Staple(report.Collateral).Verify(ctx, evidence, at)
		if err == nil || attest.CodeOf(err) != attest.CodeCollateral {
			return claims, err
		}
		e.config.Logger.WithError(attest.OneLine(err)).Warn("the collateral in the AECS's passport is no good, using our own")
	}
	return e.config.Verifier.Verify(ctx, evidence, at)
}
