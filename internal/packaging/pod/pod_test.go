package pod

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sesame-init/sesame/attest"
)

// serve starts a gRPC server with a certificate that no client knows.
func serve(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12,
	})))
	register(s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func TestProbeSaysWhetherAServerServes(t *testing.T) {
	h := health.NewServer()
	address := serve(t, func(s *grpc.Server) { healthpb.RegisterHealthServer(s, h) })
	if err := Probe(t.Context(), address); err != nil {
		t.Errorf("a server that serves: %v", err)
	}
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	if err := Probe(t.Context(), address); attest.CodeOf(err) != attest.CodeUnreachable || !strings.Contains(err.Error(),
		"NOT_SERVING") {
		t.Errorf("a server that drains: %v", err)
	}
	if err := Probe(t.Context(), serve(t, func(*grpc.Server) {})); err != nil {
		t.Errorf("a server without the health service: %v", err)
	}
}

func TestProbeFailsWhereNothingListensOrNoGRPCAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { // a port that closes every connection
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	if err := Probe(t.Context(), l.Addr().String()); attest.CodeOf(err) != attest.CodeUnreachable {
		t.Errorf("no gRPC: %v", err)
	}
	_ = l.Close()
	if err := Probe(t.Context(), l.Addr().String()); attest.CodeOf(err) != attest.CodeUnreachable {
		t.Errorf("nothing there: %v", err)
	}
}

func TestStageMakesACopyThatCanBeWrittenAndStagedAgain(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(filepath.Join(src, "metadata"), []byte("volume"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/opt/occlum/build/bin/occlum-run", filepath.Join(src, "occlum-run")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time after the node was started anew
		if err := Stage(src, dst); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dst, "metadata")); err != nil || info.Mode() != 0o644 {
		t.Errorf("the copy: %v, %v", info, err)
	}
}

func TestLimitCPUsLeavesThatManyOfThoseThatWereThere(t *testing.T) {
	done := make(chan struct{})
	go func() { // the thread is locked, and ends with its goroutine
		defer close(done)
		var before, after unix.CPUSet
		runtime.LockOSThread()
		if err := unix.SchedGetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		for _, n := range []int{1000, 1} {
			if err := LimitCPUs(n); err != nil {
				t.Error(err)
			}
			if err := unix.SchedGetaffinity(0, &after); err != nil {
				t.Error(err)
			}
			if got := after.Count(); got != min(n, before.Count()) {
				t.Errorf("%d of %d processors are left, want %d", got, before.Count(), min(n, before.Count()))
			}
		}
	}()
	<-done
}

func TestQCNLNamesThePCCS(t *testing.T) {
	file := filepath.Join(t.TempDir(), "qcnl.conf")
	if err := WriteQCNL(file, "https://pccs:8081/sgx/certification/v4/"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(text), `"pccs_url": "https://pccs:8081/sgx/certification/v4/"`) ||
		!strings.Contains(string(text), `"use_secure_cert": true`) {
		t.Errorf("%s, %v", text, err)
	}
}
