package life

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/ratls"
)

// checkSelf makes the first certificate, without which there is nothing to serve, and verifies it as a client will.
// What a client would refuse is worth a warning now; collateral may still arrive later.
func (o *Open) checkSelf(ctx context.Context) error {
	log := o.settings.Log
	certificate, err := o.settings.Identity.Certificate(ctx)
	if err != nil {
		return err
	}
	evidence, err := ratls.Evidence(certificate.Leaf.Raw)
	if err != nil {
		return attest.Errorf(attest.CodeAttester, "checking own evidence", "", "%w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, ratls.DefaultTimeout)
	defer cancel()
	claims, err := o.config.Policies.Trust().VerifyOwn(ctx, evidence, o.clock.Now())
	if err != nil {
		log.WithField("hint", attest.HintOf(err)).Warnf("clients will refuse this broker's own evidence: %v", err)
		return nil
	}
	fields := logrus.Fields{"tcb": claims.TCB.StatusName()}
	if c := claims.SGX; c != nil {
		fields["mr_enclave"], fields["mr_signer"] = hex.EncodeToString(c.MREnclave[:]), hex.EncodeToString(c.MRSigner[:])
		fields["product_id"], fields["svn"] = c.ProductID, c.SVN
		if c.Debug() {
			log.Warn("this is a debug enclave: the host reads its memory, secrets included")
		}
	}
	log.WithFields(fields).Info("own evidence is genuine")
	return nil
}

// reloading tells the service manager that a reload begins or has ended.
func (s *Serving) reloading(begins bool) {
	if !begins {
		s.settings.Notify(daemon.SdNotifyReady)
		return
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		s.settings.Notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
	}
}
