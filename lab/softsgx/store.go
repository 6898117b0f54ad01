package softsgx

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/internal/strictjson"
)

// Files of a saved platform. The collateral directory is one that [pccs.Dir] reads.
const (
	filePlatform   = "platform.json"
	fileTCBInfoV2  = "tcb_info_v2.json"
	fileRootCA     = "root_ca.pem"
	dirCollateral  = "collateral"
	typeKey        = "PRIVATE KEY"
	typeCert       = "CERTIFICATE"
	modePrivate    = 0o600
	modePublic     = 0o644
	modeDirPrivate = 0o700
)

// record is what platform.json holds.
type record struct {
	Hardware hardware
	State    state
}

func (p *Platform) keyFiles() map[string]**ecdsa.PrivateKey {
	return map[string]**ecdsa.PrivateKey{"root_ca.key": &p.keys.root, "pck_ca.key": &p.keys.ca,
		"tcb_signing.key": &p.keys.signer, "pck.key": &p.keys.pck, "attestation.key": &p.keys.attestation}
}

func (p *Platform) certificateFiles() map[string]**x509.Certificate {
	return map[string]**x509.Certificate{fileRootCA: &p.certs.root, "pck_ca.pem": &p.certs.ca,
		"tcb_signing.pem": &p.certs.signer, "pck.pem": &p.certs.pck}
}

// Save writes the platform to a directory, so that other processes can [Load] the same one: keys and
// certificates in PEM, platform.json, and the collateral below collateral/, with the root certificate beside
// it. It makes the directory if needed and replaces what an earlier Save left.
func (p *Platform) Save(dir string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.save(dir); err != nil {
		return fmt.Errorf("saving software platform: %w", err)
	}
	return nil
}

func (p *Platform) save(dir string) error {
	if err := os.MkdirAll(dir, modeDirPrivate); err != nil {
		return err
	}
	for name, key := range p.keyFiles() {
		der, err := x509.MarshalPKCS8PrivateKey(*key)
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der})
		if err := replace(filepath.Join(dir, name), text, modePrivate); err != nil {
			return err
		}
	}
	for name, c := range p.certificateFiles() {
		if err := replace(filepath.Join(dir, name), pemChain(*c), modePublic); err != nil {
			return err
		}
	}
	text, err := json.Marshal(record{p.hw, p.state})
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, filePlatform), text, modePublic); err != nil {
		return err
	}
	collateral := filepath.Join(dir, dirCollateral)
	if err := pccs.WriteDir(collateral, &p.collateral); err != nil {
		return err
	}
	if err := replace(filepath.Join(collateral, fileTCBInfoV2), p.tcbInfoV2, modePublic); err != nil {
		return err
	}
	return replace(filepath.Join(collateral, fileRootCA), pemChain(p.certs.root), modePublic)
}

// replace writes a file at once, so that another process never reads half of it.
func replace(path string, content []byte, mode os.FileMode) error {
	next := path + ".new"
	if err := os.WriteFile(next, content, mode); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// Load reads a platform that [Platform.Save] wrote. Its collateral is as old as it was then; see
// [Platform.Renew].
func Load(dir string) (*Platform, error) {
	p, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("loading software platform: %w", err)
	}
	return p, nil
}

func load(dir string) (*Platform, error) {
	text, err := os.ReadFile(filepath.Join(dir, filePlatform))
	if err != nil {
		return nil, err
	}
	var r record
	if err := strictjson.Decode(text, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", filePlatform, err)
	}
	p := &Platform{hw: r.Hardware, state: r.State}
	for name, key := range p.keyFiles() {
		der, err := readPEM(filepath.Join(dir, name), typeKey)
		if err != nil {
			return nil, err
		}
		parsed, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		ec, ok := parsed.(*ecdsa.PrivateKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, fmt.Errorf("%s: not a P-256 key", name)
		}
		*key = ec
	}
	for name, c := range p.certificateFiles() {
		der, err := readPEM(filepath.Join(dir, name), typeCert)
		if err != nil {
			return nil, err
		}
		if *c, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	collateral := filepath.Join(dir, dirCollateral)
	c, err := pccs.Dir(collateral).Collateral(context.Background(), dcap.Request{})
	if err != nil {
		return nil, err
	}
	p.collateral = *c
	if p.tcbInfoV2, err = os.ReadFile(filepath.Join(collateral, fileTCBInfoV2)); err != nil {
		return nil, err
	}
	return p, p.prepareQuotes()
}

func readPEM(path, kind string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, errors.New(path + ": no PEM block " + kind)
	}
	return block.Bytes, nil
}
