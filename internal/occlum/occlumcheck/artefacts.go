package occlumcheck

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/internal/boundedfile"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/strictjson"
)

// keyForm is how Occlum writes 128-bit keys in files.
var keyForm = regexp.MustCompile(`^[0-9a-fA-F]{2}(-[0-9a-fA-F]{2}){15}$`)

// bundles are the files and directories in which a Go program looks for CA certificates.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
	"/etc/ssl/certs", "/etc/pki/tls/certs",
}

// trust checks that the initfs holds the certificates that init needs.
func (i *inspection) trust() error {
	if i.init == nil {
		return nil
	}
	c := i.init.Collateral
	files := i.init.Files()
	for _, key := range slices.Sorted(maps.Keys(files)) {
		if i.resolve("initfs", files[key]) == "" {
			i.error(config.Path+": "+key, files[key]+" is not in the initfs", "copy the PEM file there")
			delete(files, key)
		}
	}
	for _, p := range i.init.CheckFiles(i.readInitFS) {
		if _, there := files[p.Key]; there { // the others are reported
			i.error(config.Path+": "+p.Key, p.Text, orElse(p.Write, "correct it"))
		}
	}
	if c.RootCA != "" {
		i.warn(config.Path+": collateral.root_ca", "puts another trust root in the place of Intel's",
			"remove it, unless the platform is the software one")
	}
	if strings.HasPrefix(c.PCCSURL, "https://") && c.PCCSCA == "" && !slices.ContainsFunc(bundles, i.holdsCertificates) {
		i.error("initfs"+bundles[0], "is missing, and the PCCS at "+c.PCCSURL+" is reached over TLS",
			"copy a CA bundle there, or name the PCCS's own CA in collateral.pccs_ca")
	}
	return nil
}

// readInitFS reads a file that the config names.
func (i *inspection) readInitFS(name string) ([]byte, error) {
	host := i.resolve("initfs", name)
	if host == "" {
		return nil, errors.New(name + " is not in the initfs")
	}
	return boundedfile.Read(host, maxScanned)
}

func (i *inspection) holdsCertificates(name string) bool {
	host := i.resolve("initfs", name)
	if host == "" {
		return false
	}
	if i.isDir("initfs", name) {
		entries, err := os.ReadDir(host)
		return err == nil && len(entries) > 0
	}
	return true
}

// header is the plain beginning of a protected file (SGX SDK, sgx_tprotected_fs).
type header struct {
	mac           sefs.MAC
	integrityOnly bool
}

// readHeader reads the header of the SEFS volume in dir, which is relative to the instance; nil if there is no
// volume.
func (i *inspection) readHeader(dir string) (*header, error) {
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(i.dir, dir)
	}
	f, err := os.Open(filepath.Join(dir, "metadata"))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 95)
	if _, err := io.ReadFull(f, b); err != nil || string(b[:8]) != "ELIF_XGS" {
		return nil, nil
	}
	return &header{mac: sefs.MAC(b[77:93]), integrityOnly: b[94] == 1}, nil
}

// volumes compares the volumes that are there with what the config says of them.
func (i *inspection) volumes() error {
	if i.init == nil {
		return nil
	}
	for n, v := range i.init.Volumes {
		field := fmt.Sprintf("%s: volumes[%d]", config.Path, n)
		h, err := i.readHeader(v.Source)
		switch {
		case err != nil:
			return err
		case h == nil:
			i.warn(field+".source", v.Source+" holds no volume yet", "put it there before the enclave starts")
		case h.mac != v.MAC:
			i.error(field+".mac", fmt.Sprintf("is %s, and the volume at %s has %s (EIO)", v.MAC, v.Source, h.mac),
				"write the MAC of the volume that is meant")
		case h.integrityOnly:
			i.error(field+".source", v.Source+" is not encrypted, and is mounted with a key (EIO)",
				"create the volume with a key")
		}
	}
	return nil
}

// defaultSigner is MRSIGNER of the key that every copy of Occlum holds (etc/template/Enclave.pem).
const defaultSigner = "83d719e77deaca1470f6baf62a4d774303c899db69020f9c70ee1dfc08c7ce9e"

// built checks what a build left against what it would be built from now.
func (i *inspection) built() error {
	if mode, err := i.read(".sgx_mode", 64); err != nil {
		return err
	} else if m := strings.TrimSpace(string(mode)); m == "SIM" {
		i.warn(".sgx_mode", "is SIM, where nothing is protected and no quote is genuine", "build with --sgx-mode HW")
	}
	image, err := i.readHeader("build/mount/__ROOT")
	if err != nil {
		return err
	}
	if err := i.imageType(image); err != nil {
		return err
	}
	return i.signer()
}

// imageType checks /etc/image_config.json, which Occlum's build does not renew when only the key changes, and the
// measured config against what the image is.
func (i *inspection) imageType(image *header) error {
	const name = "initfs/etc/image_config.json"
	text, err := i.read(name, 4096)
	if err != nil || text == nil && image == nil {
		return err
	}
	encrypted := image != nil && !image.integrityOnly
	if text != nil {
		var c struct {
			ImageType string `json:"image_type"`
		}
		if err := strictjson.Decode(text, &c); err != nil || c.ImageType != "encrypted" && c.ImageType != "integrity-only" {
			i.error(name, "is not what Occlum's build writes", "run occlum build -f")
			return nil
		}
		says := c.ImageType == "encrypted"
		if image == nil {
			encrypted = says
		} else if says != encrypted {
			i.error(name, fmt.Sprintf("says %q, and the built image is not: the file is stale", c.ImageType),
				"run occlum build -f")
		}
	}
	if i.init != nil {
		if err := i.init.MatchImage(encrypted); err != nil {
			i.error(config.Path+": root.key", err.Error(), attest.HintOf(err))
		}
	}
	return nil
}

// signer checks who signed the enclave, and that it is the one that Occlum.json describes.
func (i *inspection) signer() error {
	const name = "build/lib/libocclum-libos.signed.so"
	text, err := i.read(name, maxProgram)
	if err != nil || text == nil {
		return err
	}
	s := readSignature(text)
	if s == nil {
		i.error(name, "holds no enclave signature", "run occlum build")
		return nil
	}
	i.checkSignature(name, s)
	return nil
}

func (i *inspection) checkSignature(name string, s *signature) {
	if hex.EncodeToString(s.mrSigner[:]) == defaultSigner {
		i.error(name, "is signed with the key that every copy of Occlum holds, so anyone can sign as its signer",
			"run occlum build --sign-key with a key of your own")
	}
	m := i.conf.Metadata
	if uint32(s.productID) != m.ProductID || uint32(s.svn) != m.VersionNumber || s.debug != m.Debuggable {
		i.error(name, fmt.Sprintf("has product id %d, SVN %d, debug %v, and Occlum.json says %d, %d, %v: it is stale",
			s.productID, s.svn, s.debug, m.ProductID, m.VersionNumber, m.Debuggable), "run occlum build -f")
	}
}

// signature is what an enclave's SIGSTRUCT says.
type signature struct {
	mrSigner       [32]byte
	productID, svn uint16
	debug          bool
}

// readSignature finds SIGSTRUCT (Intel SDM volume 3D, 38.13) in an enclave file, or the simulator's stand-in for it;
// nil if there is neither.
func readSignature(text []byte) *signature {
	var stand struct {
		ProductID uint16 `json:"isv_prod_id"`
		SVN       uint16 `json:"isv_svn"`
		Debug     bool   `json:"debug"`
		Signer    []byte `json:"signer"`
	}
	if json.Unmarshal(text, &stand) == nil {
		parsed, err := x509.ParsePKIXPublicKey(stand.Signer)
		key, ok := parsed.(*rsa.PublicKey)
		if err != nil || !ok || key.N.BitLen() > 3072 {
			return nil
		}
		modulus := key.N.FillBytes(make([]byte, 384))
		slices.Reverse(modulus)
		return &signature{sha256.Sum256(modulus), stand.ProductID, stand.SVN, stand.Debug}
	}
	const size = 1808
	header, _ := hex.DecodeString("06000000e10000000000010000000000")
	header2, _ := hex.DecodeString("01010000600000006000000001000000")
	for at := 0; ; at++ {
		k := bytes.Index(text[at:], header)
		if k < 0 || len(text)-(at+k) < size {
			return nil
		}
		at += k
		s := text[at : at+size]
		if !bytes.Equal(s[24:40], header2) {
			continue
		}
		return &signature{
			mrSigner:  sha256.Sum256(s[128:512]),
			productID: uint16(s[1024]) | uint16(s[1025])<<8,
			svn:       uint16(s[1026]) | uint16(s[1027])<<8,
			debug:     s[944]&2 == 0, // the mask of attributes leaves it open
		}
	}
}

// interpreterOf is the loader that the program at path names, "" if it is no ELF file or names none.
func interpreterOf(path string) string {
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	return Interpreter(f)
}

// Development lists, as prefixes of names of functions, the parts of Sesame that must not be in a program which
// runs in an enclave: with them it could make evidence up. The testing package is among them.
func Development() []string {
	const module = "github.com/sesame-init/sesame/"
	return []string{module + "lab/softsgx.", module + "lab/occlumsim", "testing.(*common)"}
}
