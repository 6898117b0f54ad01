package rootkey

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/crypto/argon2"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// A Processor derives keys for the enclave that it runs: [sgx.Device].
type Processor interface {
	SelfTarget() (sgx.TargetInfo, error)
	CreateReport(target sgx.TargetInfo, data attest.ReportData) (sgx.Report, error)
	Key(request sgx.KeyRequest) ([sgx.KeySize]byte, error)
}

var _ Processor = (*sgx.Device)(nil)

// Sealed is the way of EGETKEY (Intel SDM): the key depends on the processor, MRENCLAVE, the attributes (debug among
// them, so that a debug enclave of the same measurement gets another key) and, in an enclave with KSS, CONFIGID, which
// the host may choose. It has the strength of EGETKEY's 128 bits.
type Sealed struct{ Processor Processor }

// sealedParams are a key request.
type sealedParams struct {
	Policy uint16 `json:"policy"`
	SVN    uint16 `json:"svn"`
	CPUSVN string `json:"cpu_svn"`
	KeyID  string `json:"key_id"`
}

// attributeMask are the attributes that the key depends on: all that are defined.
const attributeMask = attest.AttributeInit | attest.AttributeDebug | attest.AttributeMode64Bit |
	attest.AttributeProvisionKey | attest.AttributeEInitToken | attest.AttributeKSS

// Kind implements [Way].
func (Sealed) Kind() string { return "sealed" }

// New implements [Way].
func (s Sealed) New(ctx context.Context) (params []byte, key attest.Secret, err error) {
	self, err := s.Processor.SelfTarget()
	if err != nil {
		return nil, key, err
	}
	report, err := s.Processor.CreateReport(self, attest.ReportData{})
	if err != nil {
		return nil, key, err
	}
	id := make([]byte, 32)
	if _, err := io.ReadFull(rand.Reader, id); err != nil {
		return nil, key, err
	}
	p := sealedParams{Policy: policy(self), SVN: report.Body.SVN, CPUSVN: hex.EncodeToString(report.Body.CPUSVN[:]),
		KeyID: hex.EncodeToString(id)}
	if params, err = json.Marshal(p); err != nil {
		return nil, key, err
	}
	key, err = s.Derive(ctx, params)
	return params, key, err
}

func policy(self sgx.TargetInfo) uint16 {
	if self.Attributes&attest.AttributeKSS != 0 {
		return sgx.KeyPolicyMREnclave | sgx.KeyPolicyConfigID
	}
	return sgx.KeyPolicyMREnclave
}

// Derive implements [Way]. Parameters that ask for less than MRENCLAVE are refused.
func (s Sealed) Derive(_ context.Context, params []byte) (attest.Secret, error) {
	var p sealedParams
	if err := json.Unmarshal(params, &p); err != nil {
		return attest.Secret{}, malformed(err)
	}
	self, err := s.Processor.SelfTarget()
	if err != nil {
		return attest.Secret{}, err
	}
	if p.Policy != policy(self) {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, "deriving sealing key", "",
			"the slot wants key policy %#x, this enclave uses %#x", p.Policy, policy(self))
	}
	request := sgx.KeyRequest{Name: sgx.KeyNameSeal, Policy: p.Policy, SVN: p.SVN, AttributeMask: attributeMask,
		ConfigSVN: self.ConfigSVN}
	cpu, err1 := hex.DecodeString(p.CPUSVN)
	id, err2 := hex.DecodeString(p.KeyID)
	if err := errors.Join(err1, err2); err != nil || len(cpu) != len(request.CPUSVN) || len(id) != len(request.KeyID) {
		return attest.Secret{}, malformed(errors.New("a number has another length"))
	}
	copy(request.CPUSVN[:], cpu)
	copy(request.KeyID[:], id)
	key, err := s.Processor.Key(request)
	if err != nil {
		return attest.Secret{}, err
	}
	defer clear(key[:])
	return derive(key[:], "sesame sealing key v1")
}

// Passphrase is the way of something that an operator knows: argon2id with the second recommended option of RFC 9106
// (3 passes, 64 MiB, 4 lanes) and 16 bytes of salt. It wipes nothing: the secret stays its owner's.
type Passphrase struct{ Secret attest.Secret }

// MinPassphrase is the least length in bytes. Its strength is up to its owner: anyone who has the store can try.
const MinPassphrase = 12

type passphraseParams struct {
	Salt   string `json:"salt"`
	Passes uint32 `json:"passes"`
	Memory uint32 `json:"memory"` // KiB
	Lanes  uint8  `json:"lanes"`
}

// Kind implements [Way].
func (Passphrase) Kind() string { return "passphrase" }

// New implements [Way].
func (p Passphrase) New(ctx context.Context) (params []byte, key attest.Secret, err error) {
	if p.Secret.Len() < MinPassphrase {
		return nil, key, attest.Errorf(attest.CodeConfig, "deriving key from passphrase",
			"Take several random words.", "it has %d bytes, the least is %d", p.Secret.Len(), MinPassphrase)
	}
	salt := make([]byte, 16)
	if _, err := io.ReadFull(rand.Reader, salt); err != nil {
		return nil, key, err
	}
	params, err = json.Marshal(passphraseParams{Salt: hex.EncodeToString(salt), Passes: 3, Memory: 64 << 10, Lanes: 4})
	if err != nil {
		return nil, key, err
	}
	key, err = p.Derive(ctx, params)
	return params, key, err
}

// Derive implements [Way]. It takes at most 1 GiB.
func (p Passphrase) Derive(_ context.Context, params []byte) (attest.Secret, error) {
	var a passphraseParams
	if err := json.Unmarshal(params, &a); err != nil {
		return attest.Secret{}, malformed(err)
	}
	salt, err := hex.DecodeString(a.Salt)
	if err != nil || len(salt) < 8 || a.Passes < 1 || a.Passes > 16 || a.Memory < 8<<10 || a.Memory > 1<<20 || a.Lanes < 1 {
		return attest.Secret{}, malformed(errors.New("they are out of bounds"))
	}
	return attest.NewSecret(argon2.IDKey(p.Secret.Expose(), salt, a.Passes, a.Memory, a.Lanes, Size)), nil
}

// File is the way of a key file, 64 hexadecimal digits, which is made if there is none. Anyone who reads file and
// store has all secrets, so that one that is not private (package privatefile) is refused.
type File struct{ Path string }

// Kind implements [Way].
func (File) Kind() string { return "file" }

// New implements [Way].
func (f File) New(context.Context) (params []byte, key attest.Secret, err error) {
	if key, err = f.read(); !errors.Is(err, fs.ErrNotExist) {
		return []byte("{}"), key, err
	}
	if key, err = New(); err != nil {
		return nil, key, err
	}
	text := append(hex.AppendEncode(nil, key.Expose()), '\n')
	defer clear(text)
	if err := privatefile.Create(f.Path, text); err != nil {
		return nil, key, attest.Errorf(attest.CodeConfig, "making key file", "Name a file in a folder of the broker's own.", "%w", err)
	}
	return []byte("{}"), key, nil
}

// Derive implements [Way].
func (f File) Derive(context.Context, []byte) (attest.Secret, error) { return f.read() }

func (f File) read() (attest.Secret, error) {
	const step = "reading key file"
	text, err := privatefile.Rule{}.Read(f.Path, 2*Size+2)
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeConfig, step, "Without it the store stays locked: put it back.", "%w", err)
	}
	defer clear(text)
	if n := len(text); n > 0 && text[n-1] == '\n' {
		text = text[:n-1]
	}
	key := make([]byte, hex.DecodedLen(len(text)))
	if n, err := hex.Decode(key, text); err != nil || n != Size {
		clear(key)
		return attest.Secret{}, attest.Errorf(attest.CodeConfig, step, "", "%s has no %d hexadecimal digits", f.Path, 2*Size)
	}
	return attest.NewSecret(key), nil
}

// Process is the way of a broker whose store ends with it: a key that is nowhere but here. It is kept by pointer.
type Process struct{ key attest.Secret }

// Kind implements [Way].
func (*Process) Kind() string { return "process" }

// New implements [Way].
func (p *Process) New(ctx context.Context) (params []byte, key attest.Secret, err error) {
	if p.key, err = New(); err != nil {
		return nil, key, err
	}
	key, err = p.Derive(ctx, nil)
	return []byte("{}"), key, err
}

// Derive implements [Way].
func (p *Process) Derive(context.Context, []byte) (attest.Secret, error) {
	if p.key.Len() == 0 {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, "deriving key", "", "the key was another process's")
	}
	return attest.NewSecret(append([]byte(nil), p.key.Expose()...)), nil
}

func malformed(err error) error {
	return attest.Errorf(attest.CodeDenied, "reading slot", "The store is damaged.", "its parameters: %w", fmt.Errorf("%w", err))
}
