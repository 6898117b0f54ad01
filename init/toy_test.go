package main

import (
	"crypto/rand"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/tpm"
	"github.com/sesame-init/sesame/init/testdata/toy"
)

// serveToy is the toy's service: it releases to any TPM that has just seen the challenge.
func serveToy(t *testing.T, secrets map[string][]byte) (address string, asked func() []string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if got, err := releaseToy(t, conn, secrets); err != nil {
				t.Error(err)
			} else {
				names = append(names, got...)
			}
			_ = conn.Close()
		}
	}()
	stop := func() {
		_ = l.Close()
		<-ended
	}
	t.Cleanup(stop)
	return l.Addr().String(), func() []string { stop(); return names }
}

func releaseToy(t *testing.T, conn net.Conn, secrets map[string][]byte) ([]string, error) {
	var challenge attest.ReportData
	if _, err := rand.Read(challenge[:]); err != nil {
		return nil, err
	}
	out := json.NewEncoder(conn)
	if err := out.Encode(challenge[:]); err != nil {
		return nil, err
	}
	var request toy.Request
	if err := json.NewDecoder(conn).Decode(&request); err != nil {
		return nil, err
	}
	claims, err := new(tpm.Verifier).Verify(t.Context(), request.Evidence, time.Now())
	if err == nil && claims.ReportData != challenge {
		err = attest.Errorf(attest.CodeEvidence, "looking at evidence", "", "it is not fresh")
	}
	if err != nil {
		return nil, err
	}
	return request.Names, out.Encode(secrets)
}

// TestABackendIsAPackageAndALine boots to the application by a backend that the test adds in a package of its own.
func TestABackendIsAPackageAndALine(t *testing.T) {
	b := newLinuxBoot(t)
	replaced, err := json.Marshal(map[string]any{"Replace": listed(t, func(string) bool { return true },
		[2]string{"import (", `	"github.com/sesame-init/sesame/init/testdata/toy"`},
		[2]string{"	return []kind.Kind{", "		toy.Kind(),"})})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(b.dir, "overlay.json")
	if err := os.WriteFile(overlay, replaced, 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(b.dir, "init-linux")
	cmd := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-tags", "plainlinux", "-ldflags", "-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building init: %v\n%s", err, out)
	}
	b.program = program

	address, asked := serveToy(t, map[string][]byte{"volume_key": []byte(volumeKeyText), "token": []byte(secretCanary)})
	volume := filepath.Join(b.dir, "mnt", "hello")
	b.config["app"].(map[string]any)["args"] = []string{"see", volume, "/run/secrets/token"}
	delete(b.config, "grpc_ratls")
	b.config["backend"], b.config["collateral"] = "toy-keys", map[string]any{}
	b.config["toy_keys"] = map[string]any{"server": address}
	b.write()
	r := b.startOnly()
	s := r.sight()
	if s.Files[volume] != "from the volume" || s.Files["/run/secrets/token"] != secretCanary {
		t.Errorf("files are %q\n%s", s.Files, r.out)
	}
	if !strings.Contains(r.out.String(), "protects nothing on its way") {
		t.Errorf("its remark is not in\n%s", r.out)
	}
	if got := asked(); !slices.Equal(got, []string{"volume_key", "token"}) {
		t.Errorf("the toy was asked for %q", got)
	}

	for says, block := range map[string]map[string]any{
		"toy_keys.server: has no host or no port": {"server": "h:"},
		"toy_keys.sever: is not a known key":      {"sever": address},
	} {
		b.config["toy_keys"] = block
		b.write()
		r := b.startOnly()
		if status := r.status(); status != 10 || !strings.Contains(r.out.String(), says) {
			t.Errorf("status %d, without %q:\n%s", status, says, r.out)
		}
	}
}
