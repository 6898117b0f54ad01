package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

func (e *suite) scale(ctx context.Context, n int) error {
	if _, err := e.kubectl(ctx, "", "scale", deployment, fmt.Sprintf("--replicas=%d", n)); err != nil {
		return err
	}
	return e.waitReady(ctx, servers, n, bootLimit)
}

// measure is a closed loop with so many clients, spread over many connections, that no replica ever waits for work.
func (e *suite) measure(ctx context.Context) (*result, error) {
	return e.bench(ctx, "--cnum", "24", "--connections", "96", "--loop", "8", "--timeout", "60s")
}

// measurements is how often three replicas are measured: other work on a small machine can take their processors away.
const measurements = 3

func (e *suite) scales(ctx context.Context) (string, error) {
	one, err := e.measure(ctx)
	if err != nil {
		return "", fmt.Errorf("measuring one replica: %w", err)
	}
	if err := e.scale(ctx, 3); err != nil {
		return "", err
	}
	pods, err := e.pods(ctx, servers)
	if err != nil {
		return "", err
	}
	for _, p := range pods {
		if _, err := e.waitLog(ctx, logLimit, []string{p.Metadata.Name}, "attested, keys released"); err != nil {
			return "", fmt.Errorf("pod %s: %w", p.Metadata.Name, err)
		}
	}
	detail := fmt.Sprintf("one: %v", one)
	for range measurements {
		three, err := e.measure(ctx)
		if err != nil {
			return detail, fmt.Errorf("measuring three replicas: %w", err)
		}
		ratio := three.Throughput / one.Throughput
		detail += fmt.Sprintf("; three, each attested: %v, %.2f times", three, ratio)
		if ratio >= 2 {
			return detail, nil
		}
	}
	return detail, errors.New("that is less than twice")
}

// epcRunsOut fills what EPC is left of each node, and asks for one pod more.
func (e *suite) epcRunsOut(ctx context.Context) (string, error) {
	have, err := e.nodesHaveEPC(ctx)
	if err != nil {
		return "", err
	}
	if !have {
		return "", fmt.Errorf("%w: no node has sgx.intel.com/epc", errSkipped)
	}
	nodes, err := e.kubectl(ctx, "", "get", "nodes", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.allocatable.sgx\.intel\.com/epc}{"\n"}{end}`)
	if err != nil {
		return "", err
	}
	used, err := e.kubectl(ctx, "", "get", "pods", "--all-namespaces",
		"--field-selector=status.phase!=Succeeded,status.phase!=Failed", "-o",
		`jsonpath={range .items[*]}{.spec.nodeName}{range .spec.containers[*]} {.resources.limits.sgx\.intel\.com/epc}{end}{"\n"}{end}`)
	if err != nil {
		return "", err
	}
	left, err := epcLeft(nodes, used)
	if err != nil {
		return "", err
	}
	defer func() {
		end := context.WithoutCancel(ctx)
		_, _ = e.kubectl(end, "", "delete", "pods", "-l", "app=filler", "--force", "--grace-period=0")
		_, _ = e.kubectl(end, "", "scale", deployment, "--replicas=3")
	}()
	for node, bytes := range left {
		if _, err := e.kubectl(ctx, e.filler(node, bytes), "apply", "-f", "-"); err != nil {
			return "", err
		}
	}
	err = until(ctx, logLimit, "scheduled", func(ctx context.Context) (bool, error) {
		pods, err := e.pods(ctx, "app=filler")
		for i := range pods {
			if status, _ := pods[i].condition("PodScheduled"); status != "True" {
				return false, err
			}
		}
		return err == nil, err
	})
	if err != nil {
		return "", err
	}
	if _, err := e.kubectl(ctx, "", "scale", deployment, "--replicas=4"); err != nil {
		return "", err
	}
	var reason string
	err = until(ctx, logLimit, "Pending for want of EPC", func(ctx context.Context) (bool, error) {
		pods, err := e.pods(ctx, servers)
		for i := range pods {
			if status, message := pods[i].condition("PodScheduled"); status == "False" {
				reason = message
			}
		}
		return strings.Contains(reason, "Insufficient sgx.intel.com/epc"), err
	})
	return reason, err
}

// epcLeft computes what each node has left from lines "NODE SIZE" and "NODE SIZE SIZE…", in bytes.
func epcLeft(nodes, used string) (map[string]occlumconf.Size, error) {
	left := make(map[string]occlumconf.Size)
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		if len(fields) != 2 {
			continue
		}
		n, err := quantity(fields[1])
		if err != nil {
			return nil, err
		}
		left[fields[0]] = n
	}
	for line := range strings.Lines(used) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		for _, f := range fields[1:] {
			n, err := quantity(f)
			if err != nil {
				return nil, err
			}
			left[fields[0]] -= min(n, left[fields[0]])
		}
	}
	return left, nil
}

// quantity reads the sizes that a cluster prints for EPC: bytes, or with Ki, Mi, Gi.
func quantity(s string) (occlumconf.Size, error) {
	for suffix, unit := range map[string]string{"Ki": "KB", "Mi": "MB", "Gi": "GB", "": "B"} {
		if digits, ok := strings.CutSuffix(s, suffix); ok && strings.Trim(digits, "0123456789") == "" {
			return occlumconf.ParseSize(digits + unit)
		}
	}
	return 0, fmt.Errorf("%q is no size", s)
}

// filler is a pod that does nothing but hold EPC of a node.
func (e *suite) filler(node string, epc occlumconf.Size) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: filler-%s, labels: {app: filler}}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  terminationGracePeriodSeconds: 0
  containers:
    - name: filler
      image: %s/tf_demo_client:%s
      command: [python3, -c, "import time; time.sleep(900)"]
      resources: {limits: {cpu: 10m, memory: 32Mi, sgx.intel.com/epc: %d}}
`, node, node, e.registry, e.tag("first"), uint64(epc))
}

// deletesUnderLoad deletes one of three pods while requests become due at a steady rate.
func (e *suite) deletesUnderLoad(ctx context.Context) (string, error) {
	if err := e.scale(ctx, 3); err != nil {
		return "", err
	}
	pods, err := e.pods(ctx, servers)
	if err != nil {
		return "", err
	}
	type outcome struct {
		r   *result
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := e.bench(ctx, "--rate", "5", "--duration", "30s", "--retries", "4")
		done <- outcome{r, err}
	}()
	select {
	case <-time.After(8 * time.Second): // the load is on by then
	case o := <-done:
		return "", fmt.Errorf("the load ended early: %w", o.err)
	}
	if _, err := e.kubectl(ctx, "", "delete", "pod", pods[0].Metadata.Name, "--wait=false"); err != nil {
		return "", err
	}
	o := <-done
	if o.err != nil {
		return "", fmt.Errorf("%v: %w", o.r, o.err)
	}
	return o.r.String(), e.waitReady(ctx, servers, 3, bootLimit)
}
