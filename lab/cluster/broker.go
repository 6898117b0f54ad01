package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"github.com/sesame-init/sesame/internal/packaging/keyring"
	"github.com/sesame-init/sesame/internal/packaging/pipeline"
)

// forward is a port-forward to the broker's admin channel: the way in which an operator reaches it.
type forward struct {
	address string
	cmd     *exec.Cmd
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:[0-9]+)`)

// adminAddress is the broker's admin channel, seen from this machine.
func (e *suite) adminAddress(ctx context.Context) (string, error) {
	if e.forward != nil {
		return e.forward.address, nil
	}
	cmd := exec.CommandContext(ctx, "kubectl", "--namespace", e.namespace, "port-forward", "--address=127.0.0.1",
		brokerage,
		fmt.Sprintf(":%d", pipeline.AdminPort))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	found := forwarding.FindStringSubmatch(line)
	if err != nil || found == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return "", fmt.Errorf("forwarding the admin channel: %q, %w", line, err)
	}
	go func() { _, _ = lines.WriteTo(io.Discard) }()
	e.forward = &forward{address: found[1], cmd: cmd}
	return e.forward.address, nil
}

func (e *suite) stopForward() {
	if e.forward == nil {
		return
	}
	_ = e.forward.cmd.Process.Kill()
	_ = e.forward.cmd.Wait()
	e.forward = nil
}

// admin runs one of the operator's commands against the broker, which proves itself first.
func (e *suite) admin(ctx context.Context, args ...string) (string, error) {
	address, err := e.adminAddress(ctx)
	if err != nil {
		return "", err
	}
	out, err := e.sesame(ctx, append(args, "--context", e.path("broker.yaml"), "--broker", address)...)
	if err != nil {
		e.stopForward() // it does not outlive the pod that it leads to
	}
	return strings.TrimSpace(out), err
}

func (e *suite) putSecrets(ctx context.Context) error {
	for _, s := range keyring.Secrets() {
		if _, err := e.admin(ctx, "secret", "put", s.Name, "--kind", s.Kind, "--file", e.path("keys", s.Name)); err != nil {
			return err
		}
	}
	return nil
}

// pushPolicy gives the broker the policy that the build wrote.
func (e *suite) pushPolicy(ctx context.Context) error {
	_, err := e.admin(ctx, "policy", "push", e.path("policy.yaml"))
	return err
}

// withdrawOld leaves only the present build in the policy.
func (e *suite) withdrawOld(ctx context.Context) error {
	if err := e.build(ctx, "later", laterCPUs, "policy", "--withdraw"); err != nil {
		return err
	}
	return e.pushPolicy(ctx)
}

func (e *suite) currentTag() string { return e.tag("later") }

// rotateTLS lets the broker make a new TLS identity, which no one else has, writes its certificate to a file, and
// returns the version that it takes the place of.
func (e *suite) rotateTLS(ctx context.Context, certificate string) (old string, err error) {
	if old, err = e.version(ctx, keyring.SSLConfig); err != nil {
		return "", err
	}
	if err := os.Remove(certificate); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	_, err = e.admin(ctx, "secret", "generate", keyring.SSLConfig, "--rotate", "--kind", "tf-ssl-config", "--name",
		"localhost",
		"--name", "tf-demo-svc", "--out", certificate)
	return old, err
}

func (e *suite) withdrawTLS(ctx context.Context, version string) error {
	_, err := e.admin(ctx, "secret", "withdraw", keyring.SSLConfig, version)
	return err
}

// version is the id of the latest version of a secret.
func (e *suite) version(ctx context.Context, name string) (string, error) {
	text, err := e.admin(ctx, "secret", "list", "--json")
	if err != nil {
		return "", err
	}
	var list []struct {
		Name     string `json:"name"`
		Versions []struct {
			ID string `json:"id"`
		} `json:"versions"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return "", err
	}
	for _, s := range list {
		if s.Name == name && len(s.Versions) > 0 {
			return s.Versions[len(s.Versions)-1].ID, nil
		}
	}
	return "", fmt.Errorf("the broker lists no secret %s", name)
}

// afterRestart is what an operator does when the broker was started anew on an empty disk.
func (e *suite) afterRestart(ctx context.Context) error {
	return errors.Join(e.pushPolicy(ctx), e.putSecrets(ctx))
}
