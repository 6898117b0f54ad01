// Package aecstest is a KubeTEE AECS for tests and demonstrations, of either generation, as its clients see it: the
// same methods, checks in the same order, error texts and codes, envelopes, JSON and policies. It was written after
// the upstream's code (enclave-configuration-service and jinzhao-attest) and is tested with messages that this code
// made.
//
// # Strict and simulated
//
// A server with a Verifier is strict: it takes passports only and verifies their quotes. One without is simulated,
// like the upstream's when it is built for simulation: any quote of the right layout is good enough. A server with an
// Attester shows evidence of its own enclave; one without shows what a simulated server shows, an EPID quote that
// has no signature.
//
// # Limits
//
// There is no administration, no storage, no replication, no SM2 mode, and of generation B's functions only
// TaGetSecret: others are answered as unknown ones. A strict server judges quotes as package dcap does, so it refuses
// expired collateral, which the upstream, having no clock, accepts. Programs that ship must not import it.
package aecstest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/aecs"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/aecs/envelope"
	"github.com/sesame-init/sesame/internal/aecs/uar"
)

// Options say what server to make.
type Options struct {
	// Generation is aecs.GenerationA or aecs.GenerationB.
	Generation aecs.Generation
	// Attester is the server's own enclave. Nil: a simulated one.
	Attester attest.Attester
	// Collateral makes the server's report a passport; nil leaves it a BackgroundCheck.
	Collateral *dcap.Collateral
	// Verifier makes a verifier of a client's collateral. Nil: no quote is verified.
	Verifier func(*dcap.Collateral) attest.Verifier
	// Secrets are what the server holds, by service and name in their specs.
	Secrets []*wire.EnclaveSecret

	Key           *rsa.PrivateKey  // the server's identity; nil makes one of 2048 bits
	Rand          io.Reader        // default crypto/rand
	Now           func() time.Time // default time.Now
	Unprovisioned bool             // it is not Working yet
	IgnoreNonce   bool             // a server of generation A from before 2023-03-24
}

// Server is an AECS. It is safe for concurrent use if Options.Rand is.
type Server struct {
	wire.UnimplementedAecsServer
	options   Options
	publicKey string
	report    *wire.UnifiedAttestationAuthReport
	secrets   map[string]*wire.EnclaveSecret // by service "/" name
}

// New makes a server and its report.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Key == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		o.Key = key
	}
	s := &Server{options: o, publicKey: uar.PublicKeyPEM(&o.Key.PublicKey), secrets: map[string]*wire.EnclaveSecret{}}
	for _, secret := range o.Secrets {
		s.secrets[secret.GetSpec().GetServiceName()+"/"+secret.GetSpec().GetSecretName()] = secret
	}
	return s, s.makeReport(ctx)
}

// Register adds the server to gRPC.
func (s *Server) Register(r grpc.ServiceRegistrar) { wire.RegisterAecsServer(r, s) }

// Fingerprint is the SHA-256 of the server's key, its identity hash.
func (s *Server) Fingerprint() [32]byte { return sha256.Sum256([]byte(s.publicKey)) }

// makeReport makes the report that is shown with every answer: once, so it is not fresh.
func (s *Server) makeReport(ctx context.Context) error {
	var userData [uar.UserDataSize]byte
	if _, err := io.ReadFull(s.options.Rand, userData[:]); err != nil {
		return err
	}
	data := uar.Data(userData, s.publicKey)
	if s.options.Attester == nil {
		var err error
		s.report, err = simulatedReport(data, s.publicKey)
		return err
	}
	evidence, err := s.options.Attester.Evidence(ctx, data)
	if err != nil {
		return err
	}
	var collateral *wire.SgxQlQveCollateral
	if s.options.Collateral != nil {
		if collateral, err = uar.Collateral(s.options.Collateral, evidence.Type); err != nil {
			return err
		}
	}
	s.report, err = uar.Make(evidence, s.publicKey, collateral)
	return err
}

// code is an error of the upstream: the number that follows "Error code: ".
type code uint32

// The codes that this server gives (enclave-configuration-service error.h, jinzhao-attest error.h).
const (
	codeJSON           code = 0x02060000
	codeException      code = 0x00070000
	codeSM2A           code = 0x01C60000
	codeSM2B           code = 0x01A40000
	codeSignature      code = 0x01770000
	codeEncrypt        code = 0x01780000
	codeEmptyPlain     code = 0x01E20000
	codePlatform       code = 0x0E030000
	codeKeyHash        code = 0x11190000
	codeMREnclave      code = 0x111A0000
	codeSigner         code = 0x111B0000
	codeUserData       code = 0x111C0000
	codeProduct        code = 0x111D0000
	codeSVN            code = 0x111E0000
	codeAttribute      code = 0x111F0000
	codeSPID           code = 0x11200000
	codeDebug          code = 0x11210000
	codePlatformPolicy code = 0x11220000
	codeNoPassport     code = 0x11460000
	codeNoRule         code = 0x114C0000
	codeQuote          code = 0x11A50000
	codeTCB            code = 0x11A60000
	codeCollateral     code = 0x11A70000
	codeNotWorking     code = 0xA0050000
	codeFunction       code = 0xA3020000
	codeNoService      code = 0xA4410000
	codeNoSecret       code = 0xA4420000
	codeServiceSpec    code = 0xA4430000
	codeSecretSpec     code = 0xA4440000
	codeNotExported    code = 0xA4460000
	codeNotPublic      code = 0xA4560000
	codeNotFound       code = 0xAA280000
)

// Error implements error.
func (c code) Error() string { return fmt.Sprintf("Error code: 0x%08X", uint32(c)) }

func failed(prefix string, err error) error {
	c, ok := err.(code)
	if !ok {
		c = codeException
	}
	return status.Errorf(codes.Internal, "%s | %s", prefix, c.Error())
}

// GetEnclaveSecret is generation A.
func (s *Server) GetEnclaveSecret(ctx context.Context, r *wire.GetEnclaveSecretRequest) (*wire.GetEnclaveSecretResponse,
	error) {
	if s.options.Generation != aecs.GenerationA {
		return s.UnimplementedAecsServer.GetEnclaveSecret(ctx, r)
	}
	switch {
	case r.GetServiceName() == "":
		return nil, failed("Service name should not be empty", codeNoService)
	case r.GetSecretName() == "":
		return nil, failed("Secret name should not be empty", codeNoSecret)
	}
	sealed, err := s.getA(ctx, r)
	if err != nil {
		return nil, failed("Fail to get enclave secret keys", err)
	}
	return &wire.GetEnclaveSecretResponse{AuthRaReport: s.report, SecretEnc: sealed}, nil
}

func (s *Server) getA(ctx context.Context, r *wire.GetEnclaveSecretRequest) (*wire.DigitalEnvelopeEncrypted, error) {
	if s.options.Unprovisioned {
		return nil, codeNotWorking
	}
	secret, err := s.load(r.GetServiceName(), r.GetSecretName())
	if err != nil {
		return nil, err
	}
	if err := s.judge(ctx, r.GetAuthRaReport(), secret.GetSpec().GetPolicy().GetPolicy()); err != nil {
		return nil, err
	}
	aad := r.GetNonce()
	if aad == "" || s.options.IgnoreNonce {
		aad = envelope.Enclave
	}
	return s.seal(r.GetAuthRaReport(), secret.GetData(), aad)
}

// TaRemoteCall is generation B.
func (s *Server) TaRemoteCall(ctx context.Context, r *wire.TaRemoteCallRequest) (*wire.TaRemoteCallResponse, error) {
	if s.options.Generation != aecs.GenerationB {
		return s.UnimplementedAecsServer.TaRemoteCall(ctx, r)
	}
	text, err := s.getB(ctx, r)
	if err != nil {
		return nil, failed("Fail to call TA remote function", err)
	}
	signature, err := s.sign(text)
	if err != nil {
		return nil, failed("Fail to call TA remote function", err)
	}
	return &wire.TaRemoteCallResponse{AuthReport: s.report, ResJson: text, SignatureB64: signature}, nil
}

func (s *Server) getB(ctx context.Context, call *wire.TaRemoteCallRequest) (string, error) {
	if s.options.Unprovisioned {
		return "", codeNotWorking
	}
	key, err := s.clientKey(call.GetAuthReport())
	if err != nil {
		return "", err
	}
	signature, err := base64.StdEncoding.DecodeString(call.GetSignatureB64())
	digest := sha256.Sum256([]byte(call.GetReqJson()))
	if err != nil || rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) != nil {
		return "", codeSignature
	}
	if call.GetFunctionName() != wire.TaGetSecret {
		return "", codeFunction
	}
	var r wire.TaGetSecretRequest
	if wire.Parse(call.GetReqJson(), &r) != nil {
		return "", codeJSON
	}
	service := r.GetServiceName()
	if service == "" {
		service = "TrustedApplications"
	}
	if r.GetSecretName() == "" {
		return "", codeNoSecret
	}
	secret, err := s.load(service, r.GetSecretName())
	if err != nil {
		return "", err
	}
	policy := secret.GetSpec().GetPolicy()
	if policy.GetType() == wire.EnclavePolicyType_POLICY_TYPE_NEVER_EXPORT ||
		len(policy.GetPolicy().GetMainAttributes()) == 0 {
		return "", codeNotExported
	}
	if err := s.judge(ctx, call.GetAuthReport(), policy.GetPolicy()); err != nil {
		return "", err
	}
	plain, err := wire.JSON(secret)
	if err != nil {
		return "", codeJSON
	}
	sealed, err := s.seal(call.GetAuthReport(), plain, envelope.Enclave)
	if err != nil {
		return "", err
	}
	return wire.JSON(&wire.TaGetSecretResponse{SecretEnc: sealed, Nonce: r.GetNonce()})
}

// GetEnclaveSecretPublic gives the public part of a shared secret to anyone.
func (s *Server) GetEnclaveSecretPublic(_ context.Context, r *wire.GetEnclaveSecretPublicRequest) (
	*wire.GetEnclaveSecretPublicResponse, error) {
	text, signature, err := s.public(r)
	if err != nil {
		return nil, failed("Fail to get enclave secret public key", err)
	}
	return &wire.GetEnclaveSecretPublicResponse{SecretPublic: text, SignatureB64: signature, Nonce: r.GetNonce()}, nil
}

func (s *Server) public(r *wire.GetEnclaveSecretPublicRequest) (text, signature string, err error) {
	if s.options.Unprovisioned {
		return "", "", codeNotWorking
	}
	secret, err := s.load(r.GetServiceName(), r.GetSecretName())
	if err != nil {
		return "", "", err
	}
	shown := &wire.EnclaveSecret{Spec: secret.GetSpec(), Data: publicPart(secret)}
	if secret.GetSpec().GetShare() != "public" {
		if s.options.Generation == aecs.GenerationB {
			return "", "", codeNotPublic
		}
		shown = &wire.EnclaveSecret{Spec: &wire.EnclaveSecretSpec{Share: secret.GetSpec().GetShare()}}
	}
	if text, err = wire.JSON(shown); err != nil {
		return "", "", codeJSON
	}
	signature, err = s.sign(text + r.GetNonce())
	return text, signature, err
}

// GetAecsStatus tells anyone how the server is.
func (s *Server) GetAecsStatus(context.Context, *wire.GetAecsStatusRequest) (*wire.GetAecsStatusResponse, error) {
	now := "Working"
	if s.options.Unprovisioned {
		now = "Initializing"
	}
	text, err := wire.JSON(&wire.EnclaveStatus{
		Version: "v2.0", Status: now, IdentityBackup: "Invalid",
		IdentityHash: fmt.Sprintf("%X", s.Fingerprint()), Attr: &wire.UnifiedAttestationAttributes{},
	})
	if err != nil {
		return nil, failed("Fail to get enclave status", err)
	}
	signed := &wire.DigitalEnvelopeEncrypted{}
	if err := envelope.Sign(signed, []byte(text), s.options.Key); err != nil {
		return nil, failed("Fail to get enclave status", err)
	}
	return &wire.GetAecsStatusResponse{AuthRaReport: s.report, StatusStr: text, StatusSig: signed}, nil
}

func (s *Server) load(service, name string) (*wire.EnclaveSecret, error) {
	secret, ok := s.secrets[service+"/"+name]
	switch {
	case !ok:
		return nil, codeNotFound
	case secret.GetSpec().GetServiceName() != service:
		return nil, codeServiceSpec
	case secret.GetSpec().GetSecretName() != name:
		return nil, codeSecretSpec
	}
	return secret, nil
}

func (s *Server) seal(client *wire.UnifiedAttestationAuthReport, plain, aad string) (*wire.DigitalEnvelopeEncrypted,
	error) {
	key, err := s.clientKey(client)
	if err != nil {
		return nil, err
	}
	if plain == "" {
		return nil, codeEmptyPlain
	}
	sealed, err := envelope.Seal(s.options.Rand, []byte(plain), key, aad, s.options.Key)
	if err != nil {
		return nil, codeEncrypt
	}
	return sealed, nil
}

func (s *Server) sign(text string) (string, error) {
	digest := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(nil, s.options.Key, crypto.SHA256, digest[:])
	return base64.StdEncoding.EncodeToString(signature), err
}

// clientKey reads a client's key as the upstream does: any text without PKCS#1 marks is taken for SM2.
func (s *Server) clientKey(client *wire.UnifiedAttestationAuthReport) (*rsa.PublicKey, error) {
	if !strings.Contains(client.GetPemPublicKey(), "BEGIN RSA PUBLIC KEY") {
		if s.options.Generation == aecs.GenerationA {
			return nil, codeSM2A
		}
		return nil, codeSM2B
	}
	return parseKey(client.GetPemPublicKey())
}
