package pccs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap"
	"github.com/sesame-init/sesame/internal/boundedfile"
)

// File names of a collateral directory, in the order of [documents].
const (
	fileTCBInfo         = "tcb_info.json"
	fileTCBInfoChain    = "tcb_chain.pem"
	fileQEIdentity      = "qe_identity.json"
	fileQEIdentityChain = "qe_chain.pem"
	filePCKCRL          = "pck_crl.der"
	filePCKCRLChain     = "pck_crl_chain.pem"
	fileRootCACRL       = "root_ca_crl.der"
)

type document struct {
	name string
	raw  *[]byte
}

// documents names the parts of c.
func documents(c *dcap.Collateral) []document {
	return []document{
		{fileTCBInfo, &c.TCBInfo},
		{fileTCBInfoChain, &c.TCBInfoChain},
		{fileQEIdentity, &c.QEIdentity},
		{fileQEIdentityChain, &c.QEIdentityChain},
		{filePCKCRL, &c.PCKCRL},
		{filePCKCRLChain, &c.PCKCRLChain},
		{fileRootCACRL, &c.RootCACRL},
	}
}

// Dir is a source that reads the collateral of one platform from a directory, anew at each request:
//
//	tcb_info.json  tcb_chain.pem  qe_identity.json  qe_chain.pem
//	pck_crl.der    pck_crl_chain.pem  root_ca_crl.der
//
// CRLs may be DER, PEM or hexadecimal whatever their file name says. The verifier finds out whether the
// collateral is that of the quote.
func Dir(path string) dcap.Source { return dir(path) }

type dir string

func (d dir) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	c := new(dcap.Collateral)
	for _, doc := range documents(c) {
		raw, err := boundedfile.Read(filepath.Join(string(d), doc.name), maxDocument)
		if err != nil {
			hint := ""
			if errors.Is(err, fs.ErrNotExist) {
				hint = "A collateral directory holds tcb_info.json, tcb_chain.pem, qe_identity.json, qe_chain.pem, " +
					"pck_crl.der, pck_crl_chain.pem and root_ca_crl.der."
			}
			return nil, attest.Errorf(attest.CodeCollateral, "reading collateral directory", hint, "%w", err)
		}
		*doc.raw = raw
	}
	return c, nil
}

// WriteDir writes collateral to a directory that [Dir] reads. It makes the directory if needed. Each file is
// replaced at once, so that a reader never sees half a file.
func WriteDir(path string, c *dcap.Collateral) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	for _, doc := range documents(c) {
		if err := replaceFile(filepath.Join(path, doc.name), *doc.raw); err != nil {
			return err
		}
	}
	return nil
}

func replaceFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

// Stapled is a source of collateral that came with the evidence. The verifier still checks all of it.
func Stapled(c *dcap.Collateral) dcap.Source { return stapledSource{c} }

type stapledSource struct{ c *dcap.Collateral }

func (s stapledSource) Collateral(context.Context, dcap.Request) (*dcap.Collateral, error) {
	if s.c == nil {
		return nil, attest.Errorf(attest.CodeCollateral, "reading stapled collateral",
			"The peer must send its collateral with its evidence, or a collateral service must be configured.",
			"the evidence came without collateral")
	}
	return s.c, nil
}
