package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/attest/ratls"
	"github.com/sesame-init/sesame/attest/sgx"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// TestQuoteCommands runs the scripts in testdata/quote with quotes and collateral of a software platform.
func TestQuoteCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/quote", RequireExplicitExec: true, Setup: softwarePlatform})
}

func softwarePlatform(env *testscript.Env) error {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	platform, err := softsgx.New(softsgx.Options{Now: now, Rand: rand.NewChaCha8(sha256.Sum256([]byte("quote commands")))})
	if err != nil {
		return err
	}
	server := httptest.NewServer(platform.PCCS())
	env.Defer(server.Close)
	env.Setenv("PCCS", server.URL)

	if err := platform.Save(filepath.Join(env.WorkDir, "platform")); err != nil {
		return err
	}
	body := sgx.ReportBody{
		SGXClaims: attest.SGXClaims{MREnclave: [32]byte{1, 2, 3}, MRSigner: [32]byte{4, 5, 6}, ProductID: 7, SVN: 8,
			CPUSVN: [16]byte{5, 5, 5, 5, 5, 5, 5, 5}, Attributes: attest.AttributeInit | attest.AttributeMode64Bit, XFRM: 0xE7},
		ReportData: attest.ReportData{9, 10},
	}
	quote, err := platform.Quote(body)
	if err != nil {
		return err
	}
	debugBody := body
	debugBody.Attributes |= attest.AttributeDebug
	debugQuote, err := platform.Quote(debugBody)
	if err != nil {
		return err
	}
	changed := bytes.Clone(quote)
	changed[48+64] ^= 1
	certificate, err := ratls.NewCertificate(context.Background(), platform.Attester(body), ratls.Options{})
	if err != nil {
		return err
	}
	der := certificate.Certificate[0]
	other, err := ratls.NewCertificate(context.Background(), platform.Attester(body), ratls.Options{})
	if err != nil {
		return err
	}
	bound, err := ratls.Evidence(der)
	if err != nil {
		return err
	}
	otherBound, err := ratls.Evidence(other.Certificate[0])
	if err != nil {
		return err
	}
	dated := func(make func(context.Context, attest.Attester, ratls.Options) (tls.Certificate, error)) ([]byte, error) {
		c, err := make(context.Background(), platform.Attester(body), ratls.Options{Now: func() time.Time { return now }})
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), nil
	}
	application, err := dated(ratls.NewApplicationCertificate)
	if err != nil {
		return err
	}
	unlabelled, err := dated(ratls.NewCertificate)
	if err != nil {
		return err
	}
	copied := bytes.Replace(der, bound.Raw, otherBound.Raw, 1)
	toPEM := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }

	oe := binary.LittleEndian.AppendUint32(nil, 1)
	oe = binary.LittleEndian.AppendUint32(oe, 2)
	oe = binary.LittleEndian.AppendUint64(oe, uint64(len(quote)))
	for name, content := range map[string][]byte{
		"quote.dat":    quote,
		"quote.hex":    []byte(hex.EncodeToString(quote) + "\n"),
		"quote.base64": []byte(base64.StdEncoding.EncodeToString(quote) + "\n"),
		"report.oe":    append(oe, quote...),
		"server.der":   der,
		"server.pem":   toPEM(der),
		"copied.pem":   toPEM(copied),
		"padded.dat":   append(bytes.Clone(quote), make([]byte, 100)...),
		"short.dat":    quote[:500],
		"changed.dat":  changed,
		"debug.dat":    debugQuote,
		"app.pem":      application,
		"legacy.pem":   unlabelled,
	} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), content, 0o644); err != nil {
			return err
		}
	}
	tcb := softsgx.TCB{Status: tcbstatus.OutOfDate, Advisories: []string{"INTEL-SA-00615"}}
	if err := platform.Reissue(now, tcb); err != nil {
		return err
	}
	outOfDate := platform.Collateral()
	if err := pccs.WriteDir(filepath.Join(env.WorkDir, "outofdate"), outOfDate); err != nil {
		return err
	}
	return platform.Reissue(now, softsgx.TCB{})
}

// TestVerifyCommandAgreesWithIntelsLibrary runs "sesame quote verify" over the vectors beside attest/dcap's tests
// and, if the machine has it, a sample of the larger set.
func TestVerifyCommandAgreesWithIntelsLibrary(t *testing.T) {
	everyStatus := "UpToDate,SWHardeningNeeded,ConfigurationNeeded,ConfigurationAndSWHardeningNeeded,OutOfDate," +
		"OutOfDateConfigurationNeeded,TDRelaunchAdvised"
	patterns := []string{"../../attest/dcap/testdata/vectors/*/*"}
	if root := os.Getenv("SESAME_VECTORS"); root != "" {
		for _, p := range []string{"trustee/*", "dcap-qvl/*", "oasis-core/*", "go-tdx-guest/*", "openenclave/*eval18*",
			"gramine-ratls-golang/*", "old-root/0*", "synthetic-softsgx/*", "derived-negative/*_flip"} {
			patterns = append(patterns, filepath.Join(root, "dcap", p))
		}
	}
	judged := 0
	for _, pattern := range patterns {
		dirs, err := filepath.Glob(pattern)
		if err != nil || len(dirs) == 0 {
			t.Fatalf("no vectors in %s: %v", pattern, err)
		}
		for _, dir := range dirs {
			if filepath.Base(dir) == "INDEX.json" {
				continue
			}
			var expected struct {
				QVL          map[string]string `json:"qvl"`
				Status       string            `json:"qvl_status"`
				VerifyAt     int64             `json:"verify_at_unix"`
				SelfVerifier string            `json:"self_contained_verifier"`
			}
			text, err := os.ReadFile(filepath.Join(dir, "expected.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &expected); err != nil {
				t.Fatal(err)
			}
			genuine := expected.Status != "" && expected.SelfVerifier != "reject"
			for _, document := range []string{"pck", "tcb", "qe"} {
				genuine = genuine && expected.QVL[document] == "STATUS_OK"
			}
			if filepath.Base(dir) == "not_yet_valid_crl" { // the newest issue date is our time (docs/verification.md)
				genuine = true
			}
			var out bytes.Buffer
			command := newRootCommand()
			command.SetOut(&out)
			command.SetArgs([]string{"quote", "verify", filepath.Join(dir, "quote.dat"), "--collateral", dir,
				"--root-ca", filepath.Join(dir, "root_ca.pem"), "--accept", everyStatus, "--json",
				"--at", time.Unix(expected.VerifyAt, 0).UTC().Format(time.RFC3339)})
			err = command.Execute()
			var v struct {
				Verdict   string `json:"verdict"`
				Genuine   bool   `json:"genuine"`
				TCBStatus string `json:"tcb_status"`
				Reason    string `json:"reason"`
				Claims    struct {
					Debug bool `json:"debug"`
				} `json:"claims"`
			}
			if jsonErr := json.Unmarshal(out.Bytes(), &v); jsonErr != nil {
				t.Errorf("%s: %v: %s", dir, jsonErr, out.String())
				continue
			}
			judged++
			if v.Genuine != genuine || genuine && v.TCBStatus != expected.Status {
				t.Errorf("%s: genuine %v, %s: %s; want %v, %s", dir, v.Genuine, v.TCBStatus, v.Reason, genuine, expected.Status)
			}
			accept := genuine && expected.Status != "Revoked" && !v.Claims.Debug
			if (v.Verdict == accepted) != accept || errors.Is(err, errQuiet) == accept {
				t.Errorf("%s: %s (%v): %s; want accepted: %v", dir, v.Verdict, err, v.Reason, accept)
			}
		}
	}
	t.Logf("%d vectors judged", judged)
}

func FuzzFindQuote(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3})
	f.Add([]byte{0x30, 0x82, 0x01, 0x00})
	f.Add([]byte("03000200\n"))
	f.Add([]byte("AwACAA=="))
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := findQuote(b)
		if err == nil && len(found.raw) > len(b) {
			t.Errorf("%d bytes were found in %d", len(found.raw), len(b))
		}
	})
}
