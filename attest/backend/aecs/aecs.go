// Package aecs fetches secrets from a KubeTEE AECS, an "Attestation based Enclave Configuration Service".
//
// Two incompatible generations of the protocol are deployed, and both call themselves v2.0. The config names one:
//
//   - [GenerationA] (2023-02 to 2023-11, the tag v2.0.0, and what Occlum ships a client for):
//     kubetee.Aecs/GetEnclaveSecret. The request is not signed. The answer is an envelope around the bare secret,
//     whose additional data is our nonce.
//   - [GenerationB] (since 2023-11-29): kubetee.Aecs/TaRemoteCall. Request and answer are signed JSON, the answer
//     repeats the nonce, and the envelope holds the secret with its names, type and policy.
//   - [Auto] asks as B does and, if the server answers UNIMPLEMENTED and the config allows it, as A does. Anyone
//     is on a way without TLS can give that answer, so this is a downgrade that the host can force.
//
// # Promises
//
// One Fetch makes one RSA key, one quote that binds it and, unless there is no collateral, a passport; then it makes
// one call per secret over one connection. Of every answer, before a byte of a secret counts:
//
//   - the server's report is read (package uar), its quote verified, appraised by the server policy, and the binding
//     of the server's key to it checked; the key is compared with the pinned one if one is pinned;
//   - the answer to a fresh 32-byte nonce is wanted, which generation B signs and generation A authenticates;
//   - the envelope opens with our key, hashes to what it says and is signed by the server's key (package envelope);
//   - in B both names, and the type if the config names one, are those that were asked for.
//
// Occlum's own client checks none of this: it passes no policy and no nonce.
//
// Several servers are tried in order, again and again with growing, jittered pauses, until the context ends or no
// server can be expected to change its mind. Addresses may come from the host.
//
// # Limits
//
// The server's quote is not fresh: it binds the server's long-lived key, which several servers share. Fresh is only
// the proof that the server has the key, and that in B only. In A anyone on the network path, without TLS, can answer with
// a secret that the server once sent them, in an envelope of their own: signed is no more than the secret's hash. So
// use TLS, or B, or a secret whose use proves it (the key of a volume that has a MAC). In both generations the hash
// of a secret travels in the clear, so a secret must not be guessable.
//
// The RSA key is wiped at the end of a Fetch. In B the secret passes a JSON parser, whose copies cannot be wiped.
//
// Sources: enclave-configuration-service (tag v2.0.0 and master 43169d9), jinzhao-attest 6133036 and 1e4cb9e.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The messages are
// those of AECS, and change only with it.
package aecs

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"io"
	"regexp"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend"
	"github.com/sesame-init/sesame/attest/backend/aecs/wire"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/kind"
	"github.com/sesame-init/sesame/internal/silent"
)

// Bounds in bytes. A server stores secrets of up to MaxSecret (Occlum's client has room for one byte less); for the
// key of an image Occlum's client has MaxImageKey, which counts for the secret of the name image_key.
const (
	MaxSecret   = 10240
	MaxImageKey = 256
	// maxAnswer bounds a whole answer: report, collateral and envelope.
	maxAnswer = 1 << 20
)

const (
	imageKey  = "image_key"
	keyBits   = 2048 // of the upstream's clients
	nonceSize = 32
	maxNames  = 1024
)

// A Generation is one of the two protocols, or the search for the right one.
type Generation string

// The generations.
const (
	GenerationA Generation = "a"
	GenerationB Generation = "b"
	Auto        Generation = "auto"
)

// Secret is a secret's place in the AECS, and its kind there.
type Secret struct {
	Service string // default: that of the config
	Name    string // default: the name that is asked for
	// Type is wanted of the secret in generation B, by the upstream's name without SECRET_TYPE_: "IMPORT_DATA",
	// "AES256_KEY", "RSA_KEY_PAIR", "CERTIFICATE", "SM2_KEY_PAIR", "CONFIGURATIONS". Empty: any.
	Type string
	// Base64 decodes the text of the secret, standard base64 with padding: an AECS stores text only.
	Base64 bool
}

// check makes sure that names can be names and the type is one.
func (s Secret) check() error {
	const step = "checking a secret's place"
	for _, n := range []string{s.Service, s.Name} {
		if n != "" && !nameForm.MatchString(n) {
			return attest.Errorf(attest.CodeConfig, step, "letters, digits, dot, dash, underscore",
				"%.40q is not a name in an AECS", n)
		}
	}
	if _, ok := wire.EnclaveSecretType_value[typePrefix+s.Type]; s.Type != "" && !ok {
		return attest.Errorf(attest.CodeConfig, step, "one of "+typeNames(), "the type %.40q is unknown", s.Type)
	}
	return nil
}

// Config of a [Client]. All fields without a default are needed.
type Config struct {
	Servers    []string // "host:port", tried in order
	Generation Generation
	// AllowDowngrade lets Auto fall from B to A.
	AllowDowngrade bool
	// TLS says how the connection is secured. If it is nil, Plaintext must be said.
	TLS       *TLS
	Plaintext bool

	// Service is that of secrets of which Secrets names none.
	Service string
	Secrets map[string]Secret // by the name that is asked for; others stand in Service under their name

	Attester attest.Attester
	// UserData goes into the report data of our quote, zero-padded. A server's policy may name its beginning.
	UserData []byte
	// Collateral is what a passport is made with. If it is nil, the report is a BackgroundCheck, which only a
	// server that is built for simulation takes.
	Collateral dcap.Source

	// Verifier verifies the server's quote if it comes without collateral, or with collateral that is no good any more.
	Verifier attest.Verifier
	// Staple makes a verifier that takes the collateral which the server sends. Nil: only Verifier counts.
	Staple func(*dcap.Collateral) attest.Verifier
	// Policy is what the server must be. It may only be nil if NoServerEvidence is said.
	Policy *policy.Policy
	// ServerKey is the SHA-256 of the PEM text of the server's key (its "identity hash"); nil: any key that is bound to
	// evidence which Policy accepts.
	ServerKey *[32]byte
	// NoServerEvidence takes a server that shows no evidence, as one outside an enclave or built for simulation, for the
	// sake of its pinned ServerKey alone.
	NoServerEvidence bool

	Now    func() time.Time   // default time.Now
	Logger logrus.FieldLogger // default: nothing is logged
	// Pause before the second round of tries, doubled every round up to 16 times, each time shortened at random by up to
	// half. Default 500 ms.
	Pause time.Duration
	// Rand gives nonces; default crypto/rand.
	Rand io.Reader
	// NewKey makes the RSA key of one Fetch, which wipes it; default rsa.GenerateKey of 2048 bits.
	NewKey func() (*rsa.PrivateKey, error)
}

// Client implements [backend.Backend]. It is safe for concurrent use if Rand is.
type Client struct{ config Config }

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,255}$`)

// New checks the config. The error's code is [attest.CodeConfig].
func New(c Config) (*Client, error) {
	var problems kind.Problems
	c.check(problems.Add)
	if c.Attester == nil || c.Verifier == nil {
		problems.Add("attester", "is missing, or the verifier is", "both")
	}
	if c.TLS != nil && c.TLS.Roots == nil {
		problems.Add("tls.ca", "is missing", "the authority of the server's certificate")
	}
	if err := problems.Err("configuring aecs"); err != nil {
		return nil, err
	}
	c.setDefaults()
	return &Client{config: c}, nil
}

func (c *Config) setDefaults() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Pause == 0 {
		c.Pause = 500 * time.Millisecond
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.NewKey == nil {
		c.NewKey = func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, keyBits) }
	}
	c.Logger = silent.Or(c.Logger)
}

// Name implements [backend.Backend].
func (*Client) Name() string { return "aecs" }

// secretQuery is one secret to fetch.
type secretQuery struct {
	key string // of the result
	Secret
}

const stepFetch = "fetching secrets"

// Fetch implements [backend.Backend].
func (c *Client) Fetch(ctx context.Context, names []string) (map[string]attest.Secret, error) {
	wants, err := c.wanted(names)
	if err != nil {
		return nil, err
	}
	if len(wants) == 0 {
		return map[string]attest.Secret{}, nil
	}
	self, err := c.attest(ctx)
	if err != nil {
		return nil, &attest.Error{Step: stepFetch, Code: attest.CodeOf(err), Err: err}
	}
	defer attest.WipeRSA(self.key)
	rounds := backend.Rounds{Servers: c.config.Servers, Kind: "AECS", Pause: c.config.Pause, Logger: c.config.Logger}
	return rounds.Fetch(ctx, func(ctx context.Context, turn *backend.Turn) (map[string]attest.Secret, error) {
		return c.try(ctx, turn, self, wants)
	})
}

func (c *Client) wanted(names []string) ([]secretQuery, error) {
	if len(names) > maxNames {
		return nil, attest.Errorf(attest.CodeSecret, stepFetch, "", "%d names, at most %d are asked for", len(names),
			maxNames)
	}
	wants := make([]secretQuery, 0, len(names))
	for i, name := range names {
		w := secretQuery{key: name, Secret: c.config.Secrets[name]}
		if w.Name == "" {
			w.Name = name
		}
		if w.Service == "" {
			w.Service = c.config.Service
		}
		if !nameForm.MatchString(w.Name) || !nameForm.MatchString(w.Service) || slices.Contains(names[:i], name) {
			return nil, attest.Errorf(attest.CodeSecret, stepFetch,
				"Names have letters, digits, dot, dash and underscore; name a service for every secret.",
				"secret %.40q of service %.40q is not well named, or asked for twice", w.Name, w.Service)
		}
		wants = append(wants, w)
	}
	return wants, nil
}

// try fetches all secrets from one server over one connection.
func (c *Client) try(ctx context.Context, turn *backend.Turn, self *identity, wants []secretQuery) (
	_ map[string]attest.Secret, err error) {
	link, err := c.connect(turn.Server)
	if err != nil {
		return nil, err
	}
	defer link.close()
	secrets := make(map[string]attest.Secret, len(wants))
	defer func() {
		if err != nil {
			for _, s := range secrets {
				s.Wipe()
			}
		}
	}()
	e := &exchange{config: &c.config, self: self, link: link, generation: c.config.Generation}
	for _, w := range wants {
		secret, err := e.get(ctx, w)
		if err != nil {
			return nil, &attest.Error{Step: "asking for secret " + w.Service + "/" + w.Name, Code: attest.CodeOf(err), Err: err}
		}
		secrets[w.key] = secret
		turn.Verified()
	}
	return secrets, nil
}
