package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	keybroker "github.com/sesame-init/sesame/internal/broker"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/lab/swtpm"
)

// The registers that the Linux demo pins: a firmware's, and the one into which init measures its config.
const (
	bootRegister   = 7
	configRegister = 12
)

// linuxDemo is the main job outside of Occlum: a machine with a software TPM, a broker on the key owner's own premises,
// which is known by its key, and init-linux, which execs the model server.
type linuxDemo struct {
	*demo
	machine *swtpm.Machine
	tpm     *swtpm.Running
	broker  string // its address
}

// linuxTamper is a change after the machine was enrolled, and why it must be refused: what init hears, and the rule that the
// broker's log names.
type linuxTamper struct {
	what        string
	change      func(context.Context, *linuxDemo) error
	heard, rule string
}

var linuxTampers = map[string]linuxTamper{
	"pcr": {
		what: "the machine has booted something else: register 7 was extended",
		change: func(_ context.Context, d *linuxDemo) error {
			rw, err := tpm2.OpenTPM(d.tpm.Socket)
			if err != nil {
				return err
			}
			return tpm2.PCRExtend(rw, tpmutil.Handle(bootRegister), tpm2.AlgSHA256, make([]byte, 32), "")
		},
		heard: "tpm[0].pcrs.7", rule: "tpm[0].pcrs.7",
	},
	"ak": {
		what: "another machine, in the same state, with the same config",
		change: func(ctx context.Context, d *linuxDemo) error {
			if err := d.tpm.Stop(); err != nil {
				return err
			}
			other, err := swtpm.New(ctx, d.path("other-tpm"))
			if err != nil {
				return err
			}
			d.tpm, err = other.Start(ctx, d.path("tpm"))
			return err
		},
		heard: "the policy has no workload that is a machine with ak", rule: "tpm[0].ak", // a stranger hears no rule
	},
}

func runLinux(ctx context.Context, d *demo, tamper string) error {
	change, known := linuxTampers[tamper]
	if tamper != "" && !known {
		return fmt.Errorf("unknown TAMPER %q with PLATFORM linux, want pcr or ak", tamper)
	}
	l := &linuxDemo{demo: d}
	defer func() {
		if l.tpm != nil {
			_ = l.tpm.Stop()
		}
	}()
	if err := l.prepareLinux(ctx); err != nil {
		return err
	}
	if tamper != "" {
		return l.mustRefuseLinux(ctx, change)
	}
	if err := l.serveLinux(ctx); err != nil {
		return err
	}
	d.stopAll()
	fmt.Printf("done in %.1f s\n", time.Since(d.start).Seconds())
	return nil
}

func (d *linuxDemo) prepareLinux(ctx context.Context) error {
	steps := []struct {
		text string
		f    func() (string, error)
	}{
		{"machine with a software TPM", func() (string, error) { return d.makeMachine(ctx) }},
		{"model volume made", func() (string, error) { return d.makeVolume(ctx) }},
		{"TLS identity made", func() (string, error) { return "", d.makeIdentities() }},
		{"config of init written, broker's key pinned in it", d.writeLinuxConfig},
		{"machine enrolled in the broker's policy", func() (string, error) { return d.enrol(ctx) }},
	}
	for _, s := range steps {
		if err := d.step(ctx, s.text, s.f); err != nil {
			return err
		}
	}
	return nil
}

func (d *linuxDemo) makeMachine(ctx context.Context) (_ string, err error) {
	if d.machine, err = swtpm.New(ctx, d.path("tpm")); err != nil {
		return "", err
	}
	d.tpm, err = d.machine.Start(ctx, "")
	return "swtpm", err
}

func (d *linuxDemo) writeLinuxConfig() (string, error) {
	identity, err := keybroker.OpenBareIdentity(d.path("broker.key"), privatefile.Rule{})
	if err != nil {
		return "", err
	}
	if d.broker, err = d.address(); err != nil {
		return "", err
	}
	address, err := d.address()
	if err != nil {
		return "", err
	}
	_, d.serverPort, _ = net.SplitHostPort(address)
	pin, mount := identity.Pin(), d.path("mnt", "resnet")
	return fmt.Sprintf("key %x…", pin[:8]), writeJSON(d.path("init.json"), map[string]any{
		"platform": "linux", "attester": "tpm", "backend": "grpc-ratls",
		"grpc_ratls": map[string]any{"servers": []string{d.broker}, "protocol": "session", "broker_key": fmt.Sprintf("%x", pin)},
		"tpm":        map[string]any{"device": d.path("tpm", "tpm.sock"), "config_pcr": configRegister},
		"root":       map[string]any{},
		"app": map[string]any{
			"path": filepath.Join(d.bin, "tensorflow_model_server"),
			"args": []string{
				"--port=" + d.serverPort, "--model_name=resnet", "--model_base_path=" + mount,
				"--ssl_config_file=/run/secrets/tf_ssl.cfg", "--listen_address=127.0.0.1",
			},
		},
		"volumes":    []any{map[string]any{"source": d.path("workload-model"), "target": mount, "key": "model_key", "mac": d.mac}},
		"secrets":    []any{map[string]any{"name": "ssl_config", "path": "/run/secrets/tf_ssl.cfg", "mode": "0400"}},
		"linux":      map[string]any{"mode": "exec", "uid": 0}, // the programs may stand in a folder that only root reads
		"collateral": map[string]any{},
	})
}

// enrol writes the broker's policy with the machine's own measurements.
func (d *linuxDemo) enrol(ctx context.Context) (string, error) {
	entry, err := d.tool(ctx, d.work, "sesame", "tpm", "enroll", "--device", d.tpm.Socket, "--name", "machine",
		"--pcrs", fmt.Sprintf("0,%d", bootRegister), "--config", d.path("init.json"), "--config-pcr", fmt.Sprint(configRegister))
	if err != nil {
		return "", err
	}
	policy := "version: 1\nworkloads:\n  resnet:\n    versions:\n      - " + strings.ReplaceAll(entry, "\n", "\n        ") +
		"\nsecrets:\n  model_key: {workloads: [resnet]}\n  ssl_config: {workloads: [resnet]}\n"
	if err := os.WriteFile(d.path("policy.yaml"), []byte(policy), 0o600); err != nil {
		return "", err
	}
	secrets, err := encodeSecrets(map[string]string{"model_key": d.path("model.key"), "ssl_config": d.path("ssl.cfg")})
	if err != nil {
		return "", err
	}
	return "attestation key, registers 0, 7 and 12", writeSecrets(d.path("secrets.json"), secrets)
}

func (d *linuxDemo) startLinuxBroker(ctx context.Context) (*server, error) {
	s, err := d.startServer(d.work, "keybroker", "--policy", d.path("policy.yaml"), "--secrets", d.path("secrets.json"),
		"--key", "broker.key", d.broker)
	if err != nil {
		return nil, err
	}
	return s, s.waitForLine(ctx, "Server listening on")
}

func (d *linuxDemo) serveLinux(ctx context.Context) error {
	if err := d.step(ctx, "broker up", func() (string, error) {
		_, err := d.startLinuxBroker(ctx)
		return d.broker, err
	}); err != nil {
		return err
	}
	var workload *server
	if err := d.step(ctx, "model server up in the process that was init", func() (_ string, err error) {
		if workload, err = d.startServer(d.work, "init-linux", "--config", d.path("init.json")); err != nil {
			return "", err
		}
		return "127.0.0.1:" + d.serverPort, workload.waitForLine(ctx, "Running gRPC ModelServer at")
	}); err != nil {
		return err
	}
	d.printPhases(workload)
	return d.step(ctx, "prediction right", func() (string, error) { return d.predict(ctx) })
}

// mustRefuseLinux boots after a change and checks that the broker refuses for the right reason.
func (d *linuxDemo) mustRefuseLinux(ctx context.Context, t linuxTamper) error {
	if err := d.step(ctx, "tampered: "+t.what, func() (string, error) { return "", t.change(ctx, d) }); err != nil {
		return err
	}
	var broker *server
	if err := d.step(ctx, "broker up", func() (_ string, err error) {
		broker, err = d.startLinuxBroker(ctx)
		return d.broker, err
	}); err != nil {
		return err
	}
	if err := d.step(ctx, "refused", func() (string, error) {
		s, err := d.startServer(d.work, "init-linux", "--config", d.path("init.json"))
		if err != nil {
			return "", err
		}
		if err := s.waitEnd(ctx); err != nil {
			return "", err
		}
		output := strings.Join(s.lines(), "\n")
		if s.says("Running gRPC ModelServer") || s.exitCode() == 0 {
			return "", errors.New("the server was started:\n" + output)
		}
		if !s.says("refused [denied]") || !s.says(t.heard) {
			return "", fmt.Errorf("refused, but not for the right reason (%s):\n%s", t.heard, output)
		}
		if err := broker.waitForLine(ctx, t.rule); err != nil {
			return "", err
		}
		return s.lineWith("refused [denied]"), nil
	}); err != nil {
		return err
	}
	return errRefused
}
