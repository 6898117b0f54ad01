// Package keyring is the folder of what a deployment must keep: signing keys of enclaves, keys of images and volumes,
// and the TLS identity of the inference server.
//
// They are inputs of a build. [Make] makes what a new folder lacks and records that it did; from then on a missing
// file is an error and never replaced: with another image key nothing that was encrypted before opens, and with
// another signer no client knows the enclaves any more. Secrets are for the key broker ("sesame secret put"); none
// of them belongs into an image.
package keyring

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/tfssl"
)

// The files of a folder.
const (
	BrokerSigner   = "broker-signer.pem"   // RSA, signs the broker's enclave
	WorkloadSigner = "workload-signer.pem" // RSA, signs the inference server's enclave
	ImageKey       = "image_key"           // opens the inference server's root; the secret of this name
	ModelKey       = "model_key"           // opens the model volume; the secret of this name
	SSLConfig      = "ssl_config"          // key and certificate as TensorFlow Serving reads them; the secret of this name
	Certificate    = "server.crt"          // the certificate alone, for clients
	AdminKey       = "admin.key"           // the administrator's key for the broker's admin channel
	AdminCert      = "admin.crt"           // its certificate, which the broker's measured config names as a root
	record         = "keyring.txt"         // what was made, and when
)

// Secret is a file whose content the broker releases, under the name that it has.
type Secret struct {
	Name string
	Kind string // for "sesame secret put --kind"
}

// Secrets are all of them.
func Secrets() []Secret {
	return []Secret{{ImageKey, "image-key"}, {ModelKey, "image-key"}, {SSLConfig, "tf-ssl-config"}}
}

// Options for [Make].
type Options struct {
	// Names are the DNS names and IP addresses of the certificate; the first is its common name.
	Names []string
	// Lifetime of the certificate.
	Lifetime time.Duration
	Now      time.Time
	// Remark is told of each secret that its group may read (package privatefile). It may be nil.
	Remark func(string)
}

// Ring is a complete folder.
type Ring struct{ Dir string }

// Path is the place of one of the files.
func (r *Ring) Path(file string) string { return filepath.Join(r.Dir, file) }

// Open checks that a folder has everything, and that its secrets are private.
func Open(dir string) (*Ring, error) {
	made, err := readRecord(dir)
	if err != nil {
		return nil, err
	}
	if len(made) == 0 {
		return nil, attest.Errorf(attest.CodeUsage, "opening the keys", "Make them once, with: sesame package keys.",
			"%s holds none", dir)
	}
	return check(dir, privatefile.Rule{})
}

func check(dir string, rule privatefile.Rule) (*Ring, error) {
	for _, file := range files() {
		path := filepath.Join(dir, file)
		_, err := os.Stat(path)
		if err == nil && !slices.Contains(public(), file) {
			if err := rule.Check(path); err != nil {
				return nil, err
			}
		}
		if err != nil {
			return nil, &attest.Error{Code: attest.CodeConfig, Step: "opening the keys", Err: err,
				Hint: "It was made once and is not made again. Restore it from your backup; or, to begin anew with other " +
					"keys, move the whole folder away."}
		}
	}
	return &Ring{dir}, nil
}

// files are all files that a folder must have.
func files() []string {
	return []string{BrokerSigner, WorkloadSigner, ImageKey, ModelKey, SSLConfig, Certificate, AdminKey, AdminCert}
}

// public are those of them that everyone may read.
func public() []string { return []string{Certificate, AdminCert} }

// Make fills a folder that has no record of an earlier one, keeping files that a person has put there, and reports
// which files it made. A folder with a record is only checked. A certificate and its key belong together: only one of
// them is an error.
func Make(dir string, o Options) (ring *Ring, made []string, err error) {
	before, err := readRecord(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(before) > 0 {
		ring, err := check(dir, privatefile.Rule{Remark: o.Remark})
		return ring, nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	for key, certificate := range certificates {
		if have(dir, key) != have(dir, certificate) {
			return nil, nil, attest.Errorf(attest.CodeConfig, "making the keys", "Add the other one, or remove both.",
				"%s has only one of %s and %s", dir, key, certificate)
		}
	}
	for _, item := range []struct {
		file string
		make func(dir string, o Options) error
	}{
		{BrokerSigner, makeSigner(BrokerSigner)},
		{WorkloadSigner, makeSigner(WorkloadSigner)},
		{ImageKey, makeVolumeKey(ImageKey)},
		{ModelKey, makeVolumeKey(ModelKey)},
		{SSLConfig, makeIdentity},
		{AdminKey, makeAdmin},
	} {
		if have(dir, item.file) {
			continue
		}
		if err := item.make(dir, o); err != nil {
			return nil, nil, fmt.Errorf("making %s: %w", item.file, err)
		}
		made = append(made, item.file)
	}
	if err := writeRecord(dir, made, o.Now); err != nil {
		return nil, nil, err
	}
	ring, err = check(dir, privatefile.Rule{Remark: o.Remark})
	return ring, made, err
}

// certificates are the files that are made together with a key.
var certificates = map[string]string{SSLConfig: Certificate, AdminKey: AdminCert}

func have(dir, file string) bool {
	_, err := os.Stat(filepath.Join(dir, file))
	return err == nil
}

// writePublic makes a file that must not exist.
func writePublic(dir, file string, text []byte) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// maxFile bounds the files that are read, in bytes.
const maxFile = 1 << 20

const recordHead = "# Files of this folder that exist once and are never made again. Keep a backup.\n"

func writeRecord(dir string, made []string, now time.Time) error {
	var text strings.Builder
	text.WriteString(recordHead)
	for _, file := range files() {
		how := "given"
		together := slices.ContainsFunc(made, func(key string) bool { return certificates[key] == file })
		if slices.Contains(made, file) || together {
			how = "made"
		}
		fmt.Fprintf(&text, "%s %s %s\n", file, how, now.UTC().Format(time.RFC3339))
	}
	return privatefile.Create(filepath.Join(dir, record), []byte(text.String()))
}

// readRecord names the files that a folder once had; none if it was never filled.
func readRecord(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, record))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if name, _, ok := strings.Cut(lines.Text(), " "); ok && name != "#" {
			names = append(names, name)
		}
	}
	return names, lines.Err()
}

// signerBits and signerExponent are what SGX takes.
const signerBits = 3072

// makeSigner makes a key that can sign enclaves. SGX wants the exponent 3, which crypto/rsa does not make, so that the
// primes are chosen here.
func makeSigner(file string) func(string, Options) error {
	return func(dir string, _ Options) error {
		key, err := generateSigner()
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
		return privatefile.Create(filepath.Join(dir, file), text)
	}
}

func generateSigner() (*rsa.PrivateKey, error) {
	one, e := big.NewInt(1), big.NewInt(3)
	prime := func() (*big.Int, error) {
		for {
			p, err := rand.Prime(rand.Reader, signerBits/2)
			if err != nil {
				return nil, err
			}
			// The top two bits of p are set, so that the product has its full length.
			if new(big.Int).GCD(nil, nil, e, new(big.Int).Sub(p, one)).Cmp(one) == 0 {
				return p, nil
			}
		}
	}
	for {
		p, err := prime()
		if err != nil {
			return nil, err
		}
		q, err := prime()
		if err != nil {
			return nil, err
		}
		n := new(big.Int).Mul(p, q)
		if p.Cmp(q) == 0 || n.BitLen() != signerBits {
			continue
		}
		phi := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n, E: 3}, D: new(big.Int).ModInverse(e, phi),
			Primes: []*big.Int{p, q}}
		key.Precompute()
		return key, key.Validate()
	}
}

// MRSigner is [MRSigner] of one of the folder's signers.
func (r *Ring) MRSigner(file string) (string, error) { return MRSigner(r.Path(file)) }

// MRSigner is the measurement of the signer in file: SHA-256 of the modulus as SGX has it, little-endian, in hex.
func MRSigner(file string) (string, error) {
	text, err := privatefile.Rule{}.Read(file, maxFile)
	if err != nil {
		return "", err
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return "", fmt.Errorf("%s holds no PEM block", file)
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		parsed, err8 := x509.ParsePKCS8PrivateKey(block.Bytes)
		rsaKey, ok := parsed.(*rsa.PrivateKey)
		if err8 != nil || !ok {
			return "", fmt.Errorf("%s holds no RSA key: %w", file, err)
		}
		key = rsaKey
	}
	if key.N.BitLen() != signerBits {
		return "", attest.Errorf(attest.CodeConfig, "reading "+file, "Make one with: openssl genrsa -3 3072.",
			"RSA with %d bits, want %d", key.N.BitLen(), signerBits)
	}
	modulus := key.N.FillBytes(make([]byte, signerBits/8))
	slices.Reverse(modulus)
	sum := sha256.Sum256(modulus)
	return hex.EncodeToString(sum[:]), nil
}

func makeVolumeKey(file string) func(string, Options) error {
	return func(dir string, _ Options) error {
		var key sefs.Key
		if _, err := rand.Read(key[:]); err != nil {
			return err
		}
		return privatefile.Create(filepath.Join(dir, file), append(sefs.EncodeKey(key).Expose(), '\n'))
	}
}

// Volume reads one of the keys of volumes.
func (r *Ring) Volume(file string) (sefs.Key, error) {
	text, err := privatefile.Rule{}.Read(r.Path(file), maxFile)
	if err != nil {
		return sefs.Key{}, err
	}
	defer clear(text)
	key, err := sefs.ParseKey(text)
	if err != nil {
		return key, fmt.Errorf("reading %s: %w", file, err)
	}
	return key, nil
}

// makeIdentity makes the inference server's certificate and its ssl_config.
func makeIdentity(dir string, o Options) error {
	config, certificate, err := NewServerIdentity(o.Names, o.Lifetime, o.Now)
	if err != nil {
		return err
	}
	if err := privatefile.Create(filepath.Join(dir, SSLConfig), config); err != nil {
		return err
	}
	return writePublic(dir, Certificate, certificate)
}

// NewServerIdentity makes a TLS identity for names, DNS names and IP addresses: a new key with its certificate as
// TensorFlow Serving reads them, and the certificate alone, PEM.
func NewServerIdentity(names []string, lifetime time.Duration, now time.Time) (config, certificate []byte, err error) {
	if len(names) == 0 || lifetime <= 0 {
		return nil, nil, errors.New("a certificate needs a name and a lifetime")
	}
	key, certificate, err := pki.NewServer(names, now, now.Add(lifetime))
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	return tfssl.Encode(key, certificate), certificate, nil
}

// adminLifetime is how long the first administrator's certificate is good for. It is measured into the broker, so a
// new one is a new build.
const adminLifetime = 3 * 365 * 24 * time.Hour

// makeAdmin makes the first administrator's certificate, which is its own root.
func makeAdmin(dir string, o Options) error {
	key, certificate, err := NewAdministrator(adminLifetime, o.Now)
	if err != nil {
		return err
	}
	if err := privatefile.Create(filepath.Join(dir, AdminKey), key); err != nil {
		return err
	}
	return writePublic(dir, AdminCert, certificate)
}

// NewAdministrator makes a client certificate for a broker's administrators' channel, which is its own root, and its key,
// both PEM.
func NewAdministrator(lifetime time.Duration, now time.Time) (key, certificate []byte, err error) {
	return pki.NewClient("administrator", now, now.Add(lifetime))
}
