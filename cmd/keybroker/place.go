package main

import (
	"errors"
	"io"
	"io/fs"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// where names the place that this program is built for: "bare", "occlum" or "ego". The linker sets it, not an option: the
// host writes the command line of a program in an enclave, and must not talk the program out of being in one.
var where = "bare"

// occlumDevice is the device by which Occlum's LibOS makes quotes.
const occlumDevice = "/dev/sgx"

// deviceAttester is an [attest.Attester] that keeps a device open.
type deviceAttester interface {
	attest.Attester
	io.Closer
}

// place is the kind of environment that the broker runs in.
type place struct {
	name string
	// enclave is set if the host is not trusted: policy and secrets do not come from files that it can edit.
	enclave bool
	// open opens what makes evidence; nil if there is none.
	open func() (deviceAttester, error)
}

// findPlace is the place of a name. There are no others.
func findPlace(name string) (place, error) {
	switch name {
	case "bare":
		return place{name: name}, nil
	case "occlum":
		return place{name: name, enclave: true, open: func() (deviceAttester, error) { return openDevice(occlumDevice) }}, nil
	case "ego":
		if openEGo != nil {
			return place{name: name, enclave: true, open: openEGo}, nil
		}
	}
	return place{}, attest.Errorf(attest.CodeInternal, "finding the place", "Build with make.",
		"this program is built for %q", name)
}

func openDevice(path string) (deviceAttester, error) {
	d, err := sgx.OpenDevice(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, attest.Errorf(attest.CodeAttester, "opening "+path,
			"Start it in an Occlum instance (occlum run /bin/server ADDRESS); outside of one use the program that is built "+
				"for it (bin/keybroker).", "there is none, and this program is built for Occlum")
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// identity is what the broker shows, and what makes its evidence: nil outside an enclave.
func (p place) identity(keyFile string, rule privatefile.Rule, now func() time.Time, log logrus.FieldLogger) (broker.Identity, deviceAttester, error) {
	if p.open == nil {
		bare, err := broker.OpenBareIdentity(keyFile, rule)
		if err != nil {
			return nil, nil, err
		}
		log.Warnf("this broker runs outside an enclave: it has no evidence, and anyone who administers this machine can read "+
			"its secrets. Clients pin its key: \"broker_key\": \"%x\"", bare.Pin())
		return bare, nil, nil
	}
	a, err := p.open()
	if err != nil {
		return nil, nil, err
	}
	i, err := ratls.NewIdentity(a, ratls.Options{Now: now, Failed: func(err error, end time.Time) {
		log.WithField("hint", attest.HintOf(err)).Errorf("this broker's certificate is not renewed, the current one is used until %s: %v",
			end.UTC().Format(time.RFC3339), err)
	}})
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return i, a, nil
}
