package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// rollout waits until the deployment's new pods have taken the place of the old ones.
func (e *suite) rollout(ctx context.Context) error {
	_, err := e.kubectl(ctx, "", "rollout", "status", deployment, "--timeout=300s")
	return err
}

// serving predicts again and again until stop is called, which reports how many predictions were right and the first
// that failed.
func (e *suite) serving(ctx context.Context, crts ...string) (stop func() (int, error)) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	right := 0
	go func() {
		for {
			var err error
			for _, crt := range crts {
				if _, err = e.predict(ctx, crt); err == nil {
					break
				}
			}
			if ctx.Err() != nil {
				done <- nil
				return
			}
			if err != nil {
				done <- err
				return
			}
			right++
			select {
			case <-ctx.Done():
			case <-time.After(pollInterval):
			}
		}
	}()
	return func() (int, error) {
		cancel()
		err := <-done
		return right, err
	}
}

// rollsOut builds another measurement, allows it beside the old one, and rolls it out.
func (e *suite) rollsOut(ctx context.Context) (string, error) {
	before, err := e.measured("workload")
	if err != nil {
		return "", err
	}
	if err := e.build(ctx, "later", laterCPUs, "--push"); err != nil {
		return "", err
	}
	after, err := e.measured("workload")
	if err != nil {
		return "", err
	}
	if before.MREnclave == after.MREnclave {
		return "", errors.New("the second build has the same measurement")
	}
	if err := e.scale(ctx, 2); err != nil {
		return "", err
	}
	if err := e.pushPolicy(ctx); err != nil {
		return "", err
	}
	stop := e.serving(ctx, e.crt())
	err = errors.Join(e.applyServers(ctx), e.rollout(ctx))
	right, servingErr := stop()
	if err := errors.Join(err, servingErr); err != nil {
		return "", err
	}
	pods, err := e.pods(ctx, servers)
	if err != nil {
		return "", err
	}
	for _, p := range pods {
		if p.ready() && p.Metadata.Labels["mrenclave"] != after.MREnclave[:16] {
			return "", fmt.Errorf("pod %s is of the old build", p.Metadata.Name)
		}
	}
	return fmt.Sprintf("%s… to %s…, %d predictions meanwhile, all right", before.MREnclave[:16], after.MREnclave[:16],
		right), nil
}

// applyServers applies the new build's inference server; the broker stays the one that runs.
func (e *suite) applyServers(ctx context.Context) error {
	dir, err := e.overlay(ctx)
	if err != nil {
		return err
	}
	_, err = e.kubectl(ctx, "", "apply", "--validate=strict", "-k", dir, "-l", servers)
	return err
}

// withdraws takes the old measurement out of the policy and starts a pod of the old build.
func (e *suite) withdraws(ctx context.Context) (string, error) {
	if err := e.withdrawOld(ctx); err != nil {
		return "", err
	}
	name, err := e.soloPod(ctx, "withdrawn", e.tag("first"), "")
	if err != nil {
		return "", err
	}
	defer e.removePod(ctx, name)
	line, err := e.waitLog(ctx, bootLimit, []string{name}, "refused [denied]")
	if err != nil {
		return "", err
	}
	broker, err := e.waitLog(ctx, logLimit, []string{"-l", brokers}, "peer refused: appraising peer", "mr_enclave")
	if err != nil {
		return "", err
	}
	return line + "; broker: " + short(broker), nil
}

func short(line string) string {
	if len(line) > 200 {
		return line[:200] + "…"
	}
	return line
}

// soloPod starts one pod of a build beside the deployment, with the deployment's own template; tamper is a Python
// program that an init container runs over the pod's files after they were staged.
func (e *suite) soloPod(ctx context.Context, name, tag, tamper string) (string, error) {
	filter := `{.spec.template.spec}`
	spec, err := e.kubectl(ctx, "", "get", deployment, "-o", "jsonpath="+filter)
	if err != nil {
		return "", err
	}
	text, err := soloManifest(name, spec, e.registry+"/tf_demo:"+tag, e.registry+"/tf_demo_client:"+e.tag("first"), tamper)
	if err != nil {
		return "", err
	}
	_, err = e.kubectl(ctx, text, "apply", "-f", "-")
	return name, err
}

func (e *suite) removePod(ctx context.Context, name string) {
	_, _ = e.kubectl(context.WithoutCancel(ctx), "", "delete", "pod", name, "--wait=false", "--ignore-not-found")
}

// flipByte changes one byte in the middle of the largest file of the model volume, as the node's owner could.
const flipByte = `
import os
files = [os.path.join(d, f) for d, _, fs in os.walk("/stage/model") for f in fs]
largest = max(files, key=os.path.getsize)
with open(largest, "r+b") as f:
    f.seek(os.path.getsize(largest) // 2)
    b = f.read(1)
    f.seek(-1, 1)
    f.write(bytes([b[0] ^ 1]))
`

func (e *suite) tampered(ctx context.Context) (string, error) {
	name, err := e.soloPod(ctx, "tampered", e.currentTag(), flipByte)
	if err != nil {
		return "", err
	}
	defer e.removePod(ctx, name)
	line, err := e.waitLog(ctx, bootLimit, []string{name}, "input/output error")
	if err != nil {
		return "", err
	}
	text, err := e.logs(ctx, name)
	if err == nil && strings.Contains(text, "Running gRPC ModelServer") {
		err = errors.New("the server was started")
	}
	return short(line), err
}

// rotates gives the broker a new ssl_config, and restarts the pods one after the other.
func (e *suite) rotates(ctx context.Context) (string, error) {
	certificate := filepath.Join(e.work, "rotated.crt")
	old, err := e.rotateTLS(ctx, certificate)
	if err != nil {
		return "", err
	}
	stop := e.serving(ctx, e.crt(), certificate)
	_, err = e.kubectl(ctx, "", "rollout", "restart", deployment)
	err = errors.Join(err, e.rollout(ctx))
	right, servingErr := stop()
	if err := errors.Join(err, servingErr); err != nil {
		return "", err
	}
	if err := until(ctx, time.Minute, "served with the new certificate", func(ctx context.Context) (bool, error) {
		_, err := e.predict(ctx, certificate)
		return err == nil, err
	}); err != nil {
		return "", err
	}
	if err := e.withdrawTLS(ctx, old); err != nil {
		return "", err
	}
	// What follows pins the new certificate.
	text, err := os.ReadFile(certificate)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d predictions meanwhile, all with one of the two; then the old version was withdrawn", right),
		os.WriteFile(e.crt(), text, 0o644)
}

func (e *suite) brokerGoes(ctx context.Context) (string, error) {
	if _, err := e.kubectl(ctx, "", "scale", brokerage, "--replicas=0"); err != nil {
		return "", err
	}
	e.stopForward()
	if err := e.waitReady(ctx, brokers, 0, bootLimit); err != nil {
		return "", err
	}
	stop := e.serving(ctx, e.crt())
	if _, err := e.kubectl(ctx, "", "scale", deployment, "--replicas=4"); err != nil {
		return "", err
	}
	line, err := e.newPodWaits(ctx)
	right, servingErr := stop()
	if err := errors.Join(err, servingErr); err != nil {
		return "", err
	}
	if _, err := e.kubectl(ctx, "", "scale", brokerage, "--replicas=1"); err != nil {
		return "", err
	}
	if err := e.waitReady(ctx, brokers, 1, bootLimit); err != nil {
		return "", err
	}
	if err := e.afterRestart(ctx); err != nil {
		return "", err
	}
	if err := e.waitReady(ctx, servers, 4, bootLimit); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d predictions without it; the new pod said: %s", right, short(line)), nil
}

// newPodWaits finds the pod that is not ready and what it says.
func (e *suite) newPodWaits(ctx context.Context) (line string, err error) {
	err = until(ctx, bootLimit, "a new pod that waits for the broker", func(ctx context.Context) (bool, error) {
		pods, err := e.pods(ctx, servers)
		for i := range pods {
			if pods[i].ready() {
				continue
			}
			text, logErr := e.logs(ctx, pods[i].Metadata.Name)
			if line = lineWith(text, "no broker has answered"); logErr == nil && line != "" {
				return true, nil
			}
		}
		return false, err
	})
	return line, err
}

// attestedInference rolls out servers that make their own TLS keys, and asks them as a client that trusts measurements
// and no certificate.
func (e *suite) attestedInference(ctx context.Context) (string, error) {
	if err := e.buildWith(ctx, "attested", laterCPUs, []string{"--server-tls", "enclave"}, "--push"); err != nil {
		return "", err
	}
	if err := errors.Join(e.scale(ctx, 3), e.pushPolicy(ctx)); err != nil {
		return "", err
	}
	if err := errors.Join(e.applyServers(ctx), e.rollout(ctx), e.waitReady(ctx, servers, 3, bootLimit)); err != nil {
		return "", err
	}
	server, err := e.server(ctx)
	if err != nil {
		return "", err
	}
	trust := []string{"--server", server, "--collateral", e.path("platform", "collateral"), "--root-ca",
		e.path("platform", "root_ca.pem"),
		"--image", e.sample()}
	ask := func(policy string, more ...string) (string, error) {
		return e.sesame(ctx, append(append(more, trust...), "--policy", policy)...)
	}
	for range 6 { // each over a connection of its own, to whichever pod
		if _, err := ask(e.path("server-policy.yaml"), "predict"); err != nil {
			return "", err
		}
	}
	out, err := ask(e.path("server-policy.yaml"), "bench", "--cnum", "6", "--loop", "4", "--retries", "2")
	if err != nil {
		return "", err
	}
	// A genuine server that is not the wanted one gets no picture.
	other := filepath.Join(e.work, "other-policy.yaml")
	if err := os.WriteFile(other, []byte("sgx:\n  - mr_enclave: "+strings.Repeat("ab", 32)+"\n"), 0o644); err != nil {
		return "", err
	}
	if _, err := ask(other, "predict"); err == nil || !strings.Contains(err.Error(), "mr_enclave") {
		return "", fmt.Errorf("a client that wants another measurement got an answer: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], nil
}
