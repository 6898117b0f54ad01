package main

import (
	"context"
	"os"
	"path"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/internal/config"
	"github.com/sesame-init/sesame/internal/pki"
	"github.com/sesame-init/sesame/internal/tfssl"
)

// identityMaker makes the application's TLS identity.
type identityMaker struct {
	attester attest.Attester
	now      func() time.Time
}

// write makes an identity and writes its files below prefix. done is told of each file before it is written.
func (m identityMaker) write(ctx context.Context, c *config.AppTLS, prefix string, done func(file string)) error {
	const step = "making the application's TLS identity"
	newCertificate := ratls.NewApplicationCertificate
	if c.Binding == attest.BindingLegacy {
		newCertificate = ratls.NewCertificate
	}
	made, err := newCertificate(ctx, m.attester, ratls.Options{
		Now: m.now, Validity: time.Duration(c.Validity), Names: c.Names,
	})
	if err != nil {
		return &attest.Error{Code: attest.CodeOf(err), Step: step, Err: err}
	}
	key, err := pki.EncodeKey(made.PrivateKey)
	if err != nil {
		return attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	defer clear(key)
	certificate := pki.EncodeCertificate(made.Certificate[0])

	type file struct {
		path    string
		content []byte
		mode    config.Mode
	}
	files := []file{{c.Path, certificate, 0o444}, {c.KeyPath, key, c.Mode}}
	if c.Format == "tf-serving" {
		files = []file{{c.Path, tfssl.Encode(key, certificate), c.Mode}}
	}
	for _, f := range files {
		name := path.Join(prefix, f.path)
		secret := attest.NewSecret(f.content)
		defer secret.Wipe()
		done(name)
		if err = os.MkdirAll(path.Dir(name), 0o755); err == nil {
			uid, gid := c.Owner()
			err = fs.WriteSecret(name, secret, os.FileMode(f.mode), uid, gid)
		}
		if err != nil {
			return attest.Errorf(attest.CodeSecret, step, "Check that the directory of "+f.path+" can be written.", "%w", err)
		}
	}
	return nil
}
