package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/backend/grpcratls"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/broker/admin"
	"github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/policy"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/admintest"
	"github.com/sesame-init/sesame/lab/brokertest"
	"github.com/sesame-init/sesame/lab/softsgx"
	"github.com/sesame-init/sesame/lab/swtpm"
)

var year2100 = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

func TestAnEntryMadeUnderAWrongClockLocksNoAdministratorOut(t *testing.T) {
	c := newCustody(t, keyFile)
	kept, err := sqlite.Open(t.Context(), filepath.Join(c.dir, "broker.db"), privatefile.Rule{})
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

// endorsedIn2100 is a TPM whose endorsement key has a certificate that is dated 2100, as is the root above it.
func endorsedIn2100(t *testing.T) (device *tpm.Device, root *x509.Certificate) {
	t.Helper()
	_, running := swtpm.ForTest(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "TPM vendor"},
		NotBefore: year2100, NotAfter: year2100.AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if err := running.Certify(func(ek crypto.PublicKey) ([]byte, error) {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: year2100, NotAfter: year2100.AddDate(5, 0, 0)}
		return x509.CreateCertificate(rand.Reader, leaf, root, ek, key)
	}); err != nil {
		t.Fatal(err)
	}
	device, err = tpm.Open(tpm.Options{Path: running.Socket, EK: true, PCRs: []int{7}, Chain: []*x509.Certificate{root}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = device.Close() })
	e, err := device.Evidence(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := (&tpm.Verifier{}).Verify(t.Context(), e, year2100.AddDate(1, 0, 0))
	if err != nil || claims.TPM.EKRoot != sha256.Sum256(root.Raw) {
		t.Fatalf("its chain is not good in 2101: %v", err)
	}
	return device, root
}

// showCertificate shows a certificate to a broker on the legacy wire and returns how the broker refuses it.
func showCertificate(t *testing.T, address string, c tls.Certificate) error {
	t.Helper()
	conn, err := tls.Dial("tcp", address, ratls.ClientConfig(&c, "127.0.0.1", func(tls.ConnectionState) error { return nil }))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for { // the broker's settings, unless it refuses the certificate
		if _, err := conn.Read(make([]byte, 1024)); err != nil {
			return err
		}
	}
}

// TestNothingDated2100ThatAPeerShowsMovesTheClock runs a broker on a software platform all of whose certificates, CRLs and
// collateral are dated 2100.
func TestNothingDated2100ThatAPeerShowsMovesTheClock(t *testing.T) {
	device, root := endorsedIn2100(t)
	begin := time.Now().Truncate(time.Millisecond) // as entries say it
	platform := brokertest.Platform(t, softsgx.Options{Now: year2100})
	dir, alice := folder(t, platform), admintest.Administrator(t, "alice")
	if err := errors.Join(os.Remove(filepath.Join(dir, broker.SecretsFile)), platform.Save(filepath.Join(dir, "platform"))); err != nil {
		t.Fatal(err)
	}
	settings := fmt.Sprintf("broker:\n  store: {sqlite: %q}\n  root_key: {sealed: true}\n%s", filepath.Join(dir, "broker.db"), administeredBy(alice))
	text := policyFor(platform, dir, 1, aa, settings)
	text = strings.Replace(text, "secrets:\n", fmt.Sprintf("  old: {wire: legacy, versions: [{sgx: [{mr_enclave: '%s'}]}]}\n"+
		"  machine: {versions: [{tpm: [{ek_roots: ['%x'], wrap: true, pcrs: {7: '%064x'}}]}]}\nsecrets:\n", bb, sha256.Sum256(root.Raw), 0), 1)
	write(t, filepath.Join(dir, policyName), strings.Replace(text, "[demo]", "[demo, old, machine]", 1))
	p := newProcess(t, dir, "1 "+filepath.Join(dir, "platform"))
	p.start()
	client := func(l *lifetime) *admin.Client {
		t.Helper()
		c, err := l.dial(t.Context(), alice, session.ClientConfig{Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy()})
		if err != nil {
			t.Fatalf("the administrator is refused: %v", err)
		}
		t.Cleanup(c.Close)
		return c
	}
	if err := put(t.Context(), client(p.lifetime.Load()), "image_key"); err != nil {
		t.Fatal(err)
	}
	fetch := func(a attest.Attester) error {
		return fetchKey(t.Context(), p.lifetime.Load(), grpcratls.Config{Attester: a, Verifier: brokertest.Verifier(platform), Policy: brokertest.BrokerPolicy()})
	}
	for range 2 {
		l := p.lifetime.Load()
		certificate, err := ratls.NewCertificate(t.Context(), platform.Attester(brokertest.Enclave(0xbb, 1, 1)),
			ratls.Options{Now: func() time.Time { return year2100 }})
		if err != nil {
			t.Fatal(err)
		}
		if err := showCertificate(t, l.session, certificate); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a certificate of 2100: %v", err)
		}
		if err := fetch(device); attest.CodeOf(err) != attest.CodeDenied {
			t.Errorf("an endorsement key of 2100: %v", err)
		}
		if err := fetch(platform.Attester(brokertest.Workload())); err != nil { // lists and collateral of 2100 are valid then
			t.Error(err)
		}
		all := entries(t, client(l)) // with a new login
		var released, late, unendorsed int
		for i, e := range all {
			at, err := time.Parse(time.RFC3339, e.Time)
			if err != nil || at.Before(begin) || at.After(time.Now()) {
				t.Errorf("entry %d is of %s: %v", i, e.Time, err)
			}
			switch {
			case e.Kind == releaselog.Release:
				released++
			case e.Wire == policy.WireLegacy && strings.Contains(e.Reason, "valid from 2100-01-01"):
				late++
			case e.Kind == releaselog.Refusal && e.Wire == policy.WireSession:
				unendorsed++
			}
		}
		if !strings.Contains(p.out.String(), "the endorsement key has no certificate with a complete chain") {
			t.Error("the broker did not look at the endorsement key's certificate")
		}
		if released == 0 || released != late || released != unendorsed {
			t.Errorf("the log has %d releases, and refuses %d certificates and %d endorsement keys", released, late, unendorsed)
		}
		p.stop(syscall.SIGTERM)
		p.start() // on the same store
	}
	if got := len(entries(t, client(p.lifetime.Load()))); got < 6 {
		t.Errorf("%d entries after two restarts", got)
	}
}
