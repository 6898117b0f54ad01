package occlumsim

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
	"github.com/sesame-init/sesame/internal/strictjson"
)

// SignKeyBits is the size of a signing key's modulus: SGX takes 3072 bits only.
const SignKeyBits = 3072

// Manifest is the SHA-256 over all entries of a file system in the order of their names: type and permission
// bits, name, and the content or link target. Times and owners do not count.
func Manifest(fsys fs.FS) (string, error) {
	all := sha256.New()
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case entry.IsDir():
		case info.Mode().IsRegular():
			if content, err = hashFile(fsys, name); err != nil {
				return err
			}
		case info.Mode().Type() == fs.ModeSymlink:
			if content, err = fs.ReadLink(fsys, name); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: %s cannot be in an image", name, info.Mode().Type())
		}
		perm := info.Mode().Perm()
		if info.Mode().Type() == fs.ModeSymlink {
			perm = 0o777
		}
		_, err = fmt.Fprintf(all, "%s %q %q\n", info.Mode().Type()|perm, name, content)
		return err
	})
	return hex.EncodeToString(all.Sum(nil)), err
}

func hashFile(fsys fs.FS, name string) (string, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// MREnclave is the measurement of an enclave with this configuration.
func (s *System) MREnclave() ([32]byte, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(append([]byte("occlum simulator, MRENCLAVE, version 1\x00"), text...)), nil
}

// MRSigner is the SHA-256 of the modulus in little-endian bytes.
func MRSigner(key *rsa.PublicKey) ([32]byte, error) {
	if key.N.BitLen() != SignKeyBits {
		return [32]byte{}, attest.Errorf(attest.CodeConfig, "reading the signing key",
			"Make one with: openssl genrsa -3 -out sign.pem 3072.",
			"RSA with %d bits, want %d", key.N.BitLen(), SignKeyBits)
	}
	modulus := key.N.FillBytes(make([]byte, SignKeyBits/8))
	slices.Reverse(modulus)
	return sha256.Sum256(modulus), nil
}

// Enclave is the signed identity of a built instance, what SIGSTRUCT is to a real enclave.
type Enclave struct {
	MREnclave string           `json:"mr_enclave"`
	ProductID uint16           `json:"isv_prod_id"`
	SVN       uint16           `json:"isv_svn"`
	Debug     bool             `json:"debug"`
	KSS       bool             `json:"kss"`
	EDMM      bool             `json:"edmm"`
	FamilyID  occlumconf.ID128 `json:"family_id"`
	ExtProdID occlumconf.ID128 `json:"ext_prod_id"`
	Signer    []byte           `json:"signer"`              // public key, PKIX
	Signature []byte           `json:"signature,omitempty"` // RSA PKCS #1 v1.5, SHA-256, over the JSON without it
}

func sign(s *System, m occlumconf.Metadata, key *rsa.PrivateKey) (*Enclave, error) {
	if _, err := MRSigner(&key.PublicKey); err != nil {
		return nil, err
	}
	if m.ProductID > 0xFFFF || m.VersionNumber > 0xFFFF {
		return nil, attest.Errorf(attest.CodeConfig, "reading "+configFile, "SGX has 16 bits for each.",
			"metadata.product_id or version_number is larger than 65535")
	}
	measurement, err := s.MREnclave()
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	e := &Enclave{
		MREnclave: hex.EncodeToString(measurement[:]),
		ProductID: uint16(m.ProductID), SVN: uint16(m.VersionNumber),
		Debug: m.Debuggable, KSS: m.EnableKSS, EDMM: s.Feature.EnableEDMM,
		FamilyID: m.FamilyID, ExtProdID: m.ExtProdID, Signer: public,
	}
	digest, err := e.digest()
	if err != nil {
		return nil, err
	}
	e.Signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
	return e, err
}

func (e Enclave) digest() ([]byte, error) {
	e.Signature = nil
	text, err := json.Marshal(e)
	digest := sha256.Sum256(text)
	return digest[:], err
}

// Signer is the hash of the key that signed the enclave.
func (e *Enclave) signer() (key *rsa.PublicKey, mrSigner [32]byte, err error) {
	parsed, err := x509.ParsePKIXPublicKey(e.Signer)
	if err != nil {
		return nil, mrSigner, err
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok {
		return nil, mrSigner, errors.New("the signer is not an RSA key")
	}
	mrSigner, err = MRSigner(key)
	return key, mrSigner, err
}

// Report is the report body of the enclave. KSS fields given at run time come from o.
func (e *Enclave) Report(o KSS) (sgx.ReportBody, error) {
	var body sgx.ReportBody
	b, err := hex.DecodeString(e.MREnclave)
	if err != nil || len(b) != 32 {
		return body, fmt.Errorf("mr_enclave %q is not 32 bytes in hex", e.MREnclave)
	}
	copy(body.MREnclave[:], b)
	if _, body.MRSigner, err = e.signer(); err != nil {
		return body, err
	}
	body.ProductID, body.SVN = e.ProductID, e.SVN
	body.Attributes = attest.AttributeInit | attest.AttributeMode64Bit
	body.XFRM = 0xE7
	if e.Debug {
		body.Attributes |= attest.AttributeDebug
	}
	if e.EDMM {
		body.MiscSelect = 1
	}
	if !e.KSS {
		if o != (KSS{}) {
			return body, attest.Errorf(attest.CodeConfig, "loading the enclave",
				"Set metadata.enable_kss to true in Occlum.json and build again.",
				"config id and SVN need an enclave with KSS")
		}
		return body, nil
	}
	body.Attributes |= attest.AttributeKSS
	body.ConfigID, body.ConfigSVN = o.ConfigID, o.ConfigSVN
	if body.FamilyID, err = bytesOf(e.FamilyID); err != nil {
		return body, err
	}
	body.ExtProdID, err = bytesOf(e.ExtProdID)
	return body, err
}

// KSS are the fields of key separation and sharing that the host gives when it starts an enclave.
type KSS struct {
	ConfigID  [64]byte
	ConfigSVN uint16
}

func bytesOf(id occlumconf.ID128) (b [16]byte, err error) {
	for i, half := range []string{id.Low, id.High} {
		v, err := strconv.ParseUint(strings.TrimPrefix(half, "0x"), 16, 64)
		if err != nil {
			return b, err
		}
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
	return b, nil
}

// Load reads what [Instance.Build] made, and checks signature and measurement as the processor does when it
// loads an enclave.
func (i *Instance) Load() (*System, *Enclave, error) {
	system, enclave, err := i.load()
	if err != nil {
		return nil, nil, &attest.Error{Code: attest.CodeConfig, Step: "loading the enclave", Err: err,
			Hint: "Run occlum build."}
	}
	return system, enclave, nil
}

func (i *Instance) load() (*System, *Enclave, error) {
	system, err := readJSON[System](i.path(systemFile))
	if err != nil {
		return nil, nil, err
	}
	enclave, err := i.LoadEnclave()
	if err != nil {
		return nil, nil, err
	}
	measurement, err := system.MREnclave()
	if err != nil {
		return nil, nil, err
	}
	if hex.EncodeToString(measurement[:]) != enclave.MREnclave {
		return nil, nil, fmt.Errorf("%s is not the one that was measured", systemFile)
	}
	return system, enclave, nil
}

// LoadEnclave reads the signed identity alone.
func (i *Instance) LoadEnclave() (*Enclave, error) {
	e, err := readJSON[Enclave](i.path(enclaveFile))
	if err != nil {
		return nil, err
	}
	key, _, err := e.signer()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", enclaveFile, err)
	}
	digest, err := e.digest()
	if err != nil {
		return nil, err
	}
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest, e.Signature); err != nil {
		return nil, fmt.Errorf("%s: %w", enclaveFile, err)
	}
	return e, nil
}

func readJSON[T System | Enclave](name string) (*T, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, occlumconf.MaxFile))
	if err != nil {
		return nil, err
	}
	v := new(T)
	if err := strictjson.Decode(text, v); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Base(name), err)
	}
	return v, nil
}

// ReadSignKey reads an RSA private key in PEM, PKCS #1 or PKCS #8.
func ReadSignKey(name string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM block", name)
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not an RSA key", name)
	}
	return key, nil
}

// DefaultSignKey reads the signing key in the state directory and makes one if there is none. Real Occlum
// has one default key that everybody knows; this one is at least the user's own.
func DefaultSignKey(stateDir string) (*rsa.PrivateKey, error) {
	name := filepath.Join(stateDir, "Enclave.pem")
	key, err := ReadSignKey(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = rsa.GenerateKey(rand.Reader, SignKeyBits); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	temporary, err := os.CreateTemp(stateDir, "Enclave-*.pem")
	if err != nil {
		return nil, err
	}
	defer os.Remove(temporary.Name())
	if _, err := temporary.Write(text); err != nil {
		return nil, errors.Join(err, temporary.Close())
	}
	if err := temporary.Close(); err != nil {
		return nil, err
	}
	// Another process may have made one meanwhile: the first stays.
	if err := os.Link(temporary.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return ReadSignKey(name)
}
