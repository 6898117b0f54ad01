package main

import (
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/clock"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/broker"
	"github.com/sesame-init/sesame/broker/admin/adminpb"
	"github.com/sesame-init/sesame/broker/keystore"
	"github.com/sesame-init/sesame/broker/policy"
	"github.com/sesame-init/sesame/broker/rootkey"
	"github.com/sesame-init/sesame/broker/store/sqlite"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
)

var year2100 = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

func TestAnEntryMadeUnderAWrongClockLocksNoAdministratorOut(t *testing.T) {
	c := newCustody(t, keyFile)
	kept, err := sqlite.Open(t.Context(), filepath.Join(c.dir, "broker.db"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keystore.Open(t.Context(), keystore.Options{Store: kept, Root: rootkey.File{Path: filepath.Join(c.dir, "root.key")},
		Now: func() time.Time { return year2100 }})
	if err != nil {
		t.Fatal(err)
	}
	_, err = keys.Refuse(t.Context(), broker.Decision{At: year2100, Peer: "192.0.2.1:1", Wire: policy.WireSession,
		Workload: "inference", Code: attest.CodeDenied, Reason: "made under a wrong clock"})
	keys.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}

	l, said := c.launch()
	said.find(t, servingSessions)
	client, err := l.dial(t.Context(), c.alice, session.ClientConfig{BrokerKey: c.pin})
	if err != nil {
		t.Fatalf("the administrator is refused: %v", err)
	}
	defer client.Close()
	if _, err := client.MarkMistimed(t.Context(), &adminpb.MarkMistimedRequest{Index: 0}); attest.CodeOf(err) != attest.CodeConfig {
		t.Errorf("without a reason: %v", err)
	}
	if _, err := client.MarkMistimed(t.Context(), &adminpb.MarkMistimedRequest{Index: 0, Reason: "the node's clock was wrong"}); err != nil {
		t.Fatal(err)
	}
	all := entries(t, client)
	if got := all[0]; !strings.HasPrefix(got.Time, "2100-") {
		t.Errorf("the entry was changed: %+v", got)
	}
	last := all[len(all)-1]
	if last.Admin == nil || last.Admin.Action != "log.mistimed" ||
		!strings.Contains(last.Admin.Detail, "entry 0 of 2100-01-01") || !strings.Contains(last.Admin.Detail, "the node's clock") {
		t.Errorf("the log says %+v", last)
	}
}

// TestNothingBelowAConfiguredRootMovesTheClock has all dates of a software platform in 2100: certificates, revocation lists,
// TCB info, identity, and an RA-TLS certificate.
func TestNothingBelowAConfiguredRootMovesTheClock(t *testing.T) {
	platform := brokertest.Platform(t, softsgx.Options{Now: year2100})
	dir := folder(t, platform)
	p, err := policy.Parse([]byte(policyFor(platform, dir, 1, aa, "")))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	keeper := &timekeeper{Bounded: clock.New(func() time.Time { return now }, time.Time{})}
	log := logrus.New()
	log.SetOutput(io.Discard)
	c := &command{}
	trust, err := c.trust(p.Trust, keeper, log)
	if err != nil {
		t.Fatal(err)
	}
	defer trust.Close()
	attester := platform.Attester(brokertest.Workload())
	evidence, err := attester.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := trust.Verifier.Verify(t.Context(), evidence, keeper.Now())
	if err != nil {
		t.Fatal(err)
	}
	if claims.TCB.VerifiedAt.Before(year2100) {
		t.Errorf("verified at %s: the platform is not of 2100", claims.TCB.VerifiedAt)
	}
	if got := keeper.Now(); !got.Equal(now) {
		t.Errorf("the clock is at %s after evidence under a configured root, want %s", got, now)
	}
}
