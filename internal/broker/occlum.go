package broker

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
	appraisal "github.com/sesame-init/sesame/attest/policy"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/raconfig"
	"github.com/sesame-init/sesame/internal/strictjson"
)

// The files of a folder that makes a drop-in for Occlum's init_ra_server. The first two are Occlum's, the others
// are optional. If the broker runs in an enclave they belong into its measured image.
const (
	PeersFile   = "dynamic_config.json" // what a peer must be
	SecretsFile = "secret_config.json"  // names and base64 values
	RootCAFile  = "root_ca.pem"         // the root to trust instead of Intel's
	TCBFile     = "tcb_policy.json"     // appraisal policy's TCB: the platform states to accept, where not only UpToDate
)

const maxFile = 1 << 20

// Folder is the content of such a folder.
type Folder struct {
	Policy  *policy.Policy // one workload, named after PeersFile; it may have all secrets, as Occlum's server has it
	Secrets map[string]attest.Secret
	Roots   []*x509.Certificate // empty where Intel's root counts
}

// Wipe overwrites the secrets.
func (f *Folder) Wipe() { wipe(f.Secrets) }

// ReadFolder reads and checks the files; that of the secrets is a private one. The error's code is [attest.CodeConfig]; it
// names file and field.
func ReadFolder(dir string, rule privatefile.Rule) (_ *Folder, err error) {
	fail := func(name string, err error) (*Folder, error) {
		hint := ""
		if errors.Is(err, fs.ErrNotExist) {
			hint = "Start keybroker in the folder with Occlum's dynamic_config.json and secret_config.json."
		}
		return nil, &attest.Error{Code: attest.CodeConfig, Step: "reading " + name, Err: err, Hint: hint}
	}
	f := &Folder{}
	text, err := boundedfile.Read(filepath.Join(dir, PeersFile), raconfig.MaxSize)
	if err != nil {
		return fail(PeersFile, err)
	}
	peers, err := raconfig.Parse(text)
	if err != nil {
		return fail(PeersFile, err)
	}
	if peers.Policy.TCB, err = readTCB(filepath.Join(dir, TCBFile)); err != nil {
		return fail(TCBFile, err)
	}
	if err := peers.Policy.Validate(); err != nil {
		return fail(TCBFile, err)
	}
	if f.Roots, err = readRoots(filepath.Join(dir, RootCAFile)); err != nil {
		return fail(RootCAFile, err)
	}
	if text, err = rule.Read(filepath.Join(dir, SecretsFile), maxSecretFile); err != nil {
		return fail(SecretsFile, err)
	}
	if f.Secrets, err = ParseSecrets(text); err != nil {
		return fail(SecretsFile, err)
	}
	f.Policy = policy.Occlum(PeersFile, peers)
	for _, root := range f.Roots {
		f.Policy.Trust.Roots = append(f.Policy.Trust.Roots,
			string(pki.EncodeCertificate(root.Raw)))
	}
	return f, nil
}

func readTCB(path string) (tcb appraisal.TCB, err error) {
	text, err := boundedfile.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return tcb, nil
	}
	if err != nil {
		return tcb, err
	}
	err = strictjson.Decode(text, &tcb)
	return tcb, err
}

func readRoots(path string) ([]*x509.Certificate, error) {
	text, err := boundedfile.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	root, err := pki.ParseCertificate(text)
	if err != nil {
		return nil, err
	}
	return []*x509.Certificate{root}, nil
}
