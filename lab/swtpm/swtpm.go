// Package swtpm runs software TPMs: Debian's swtpm, each with a state directory of its own and an endorsement key whose
// certificate chains to a root of its own. It is for development, tests and demos; no program that judges or makes
// evidence may import it.
package swtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// Program is what has to be in PATH; Debian has it in the packages swtpm and swtpm-tools.
const Program = "swtpm"

const startTimeout = 20 * time.Second

// Machine is a software TPM's state, as a machine keeps it over its boots.
type Machine struct{ dir string }

// New makes a TPM with its endorsement key, certificate and certificate authority in an empty directory. It takes a few
// seconds.
func New(ctx context.Context, dir string) (*Machine, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir}
	for _, sub := range []string{"state", "ca"} {
		if err := os.MkdirAll(m.path(sub), 0o700); err != nil {
			return nil, err
		}
	}
	files := map[string]string{
		"localca.conf": fmt.Sprintf("statedir = %[1]s\nsigningkey = %[1]s/signkey.pem\nissuercert = %[1]s/issuercert.pem\n"+
			"certserial = %[1]s/certserial\n", m.path("ca")),
		"localca.options": "--platform-manufacturer Sesame\n--platform-version 1\n--platform-model swtpm\n",
		"setup.conf": fmt.Sprintf("create_certs_tool = /usr/bin/swtpm_localca\ncreate_certs_tool_config = %s\n"+
			"create_certs_tool_options = %s\nactive_pcr_banks = sha256\n", m.path("localca.conf"), m.path("localca.options")),
	}
	for name, text := range files {
		if err := os.WriteFile(m.path(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", m.path("state"), "--create-ek-cert",
		"--config", m.path("setup.conf"), "--pcr-banks", "sha256", "--overwrite")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("swtpm_setup (Debian package swtpm-tools): %w\n%s", err, out)
	}
	return m, nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// Certificates are those above the endorsement key's: the issuer, then the root.
func (m *Machine) Certificates() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, name := range []string{"ca/issuercert.pem", "ca/swtpm-localca-rootca-cert.pem"} {
		text, err := os.ReadFile(m.path(name))
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, errors.New(name + " is not PEM")
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, certificate)
	}
	return out, nil
}

// CertificatesFile writes them as PEM and returns the file's path.
func (m *Machine) CertificatesFile() (string, error) {
	all, err := m.Certificates()
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	for _, c := range all {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return "", err
		}
	}
	return m.path("certificates.pem"), os.WriteFile(m.path("certificates.pem"), text.Bytes(), 0o644)
}

// Running is a TPM that answers.
type Running struct {
	// Socket takes TPM commands, one connection each: a path for tpm.Open.
	Socket string

	cmd     *exec.Cmd
	output  *bytes.Buffer
	control bool // the socket is no way for commands
}

// Start powers the TPM on: its registers are reset. The socket's path must be short (107 bytes), so a directory for it
// may be named; "" takes the machine's own.
func (m *Machine) Start(ctx context.Context, socketDir string) (*Running, error) {
	if socketDir == "" {
		socketDir = m.dir
	}
	socket := filepath.Join(socketDir, "tpm.sock")
	return m.start(ctx, socket, "--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
}

// StartForQEMU makes the TPM wait for a virtual machine's firmware. Socket is its control channel, for QEMU's
// "-chardev socket", and takes no commands.
func (m *Machine) StartForQEMU(ctx context.Context) (*Running, error) {
	socket := m.path("ctrl.sock")
	r, err := m.start(ctx, socket, "--ctrl", "type=unixio,path="+socket)
	if err == nil {
		r.control = true
	}
	return r, err
}

func (m *Machine) start(ctx context.Context, socket string, options ...string) (*Running, error) {
	r := &Running{Socket: socket, output: &bytes.Buffer{}}
	if len(r.Socket) > 107 {
		return nil, fmt.Errorf("the socket's path %s is too long", r.Socket)
	}
	r.cmd = exec.Command(Program, append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + m.path("state"),
		"--pid", "file=" + r.Socket + ".pid"}, options...)...)
	r.cmd.Stdout, r.cmd.Stderr = r.output, r.output
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting swtpm (Debian package swtpm): %w", err)
	}
	deadline, tick := time.After(startTimeout), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		if text, err := os.ReadFile(r.Socket + ".pid"); err == nil && strings.TrimSpace(string(text)) != "" {
			return r, nil // written once it listens
		}
		select {
		case <-tick.C:
		case <-deadline:
			return nil, errors.Join(errors.New("swtpm does not listen: "+r.output.String()), r.Stop())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), r.Stop())
		}
	}
}

// Certify puts another certificate in the place of the RSA endorsement key's. sign gets the key.
func (r *Running) Certify(sign func(ek crypto.PublicKey) (der []byte, err error)) error {
	rw, err := tpm2.OpenTPM(r.Socket)
	if err != nil {
		return err
	}
	ek, err := client.EndorsementKeyRSA(rw)
	if err != nil {
		return err
	}
	defer ek.Close()
	der, err := sign(ek.PublicKey())
	if err != nil {
		return err
	}
	const index = tpmutil.Handle(client.EKCertNVIndexRSA)
	const chunk = 512 // fits into every TPM's buffer
	if err := tpm2.NVUndefineSpace(rw, "", tpm2.HandlePlatform, index); err != nil {
		return fmt.Errorf("removing the old certificate: %w", err)
	}
	if err := tpm2.NVDefineSpace(rw, tpm2.HandlePlatform, index, "", "", nil,
		tpm2.AttrPlatformCreate|tpm2.AttrPPWrite|tpm2.AttrPPRead|tpm2.AttrOwnerRead|tpm2.AttrAuthRead|tpm2.AttrNoDA, uint16(len(der))); err != nil {
		return fmt.Errorf("making room for the certificate: %w", err)
	}
	for at := 0; at < len(der); at += chunk {
		if err := tpm2.NVWrite(rw, tpm2.HandlePlatform, index, "", der[at:min(at+chunk, len(der))], uint16(at)); err != nil {
			return fmt.Errorf("writing the certificate: %w", err)
		}
	}
	return nil
}

// Stop powers the TPM off, in order.
func (r *Running) Stop() error {
	if !r.control {
		if rw, err := tpm2.OpenTPM(r.Socket); err == nil {
			_ = tpm2.Shutdown(rw, tpm2.StartupClear) // a TPM that does not answer any more is ended all the same
		}
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	_ = r.cmd.Wait() // that it was a signal that ended it says nothing
	_ = os.Remove(r.Socket + ".pid")
	return nil
}
