package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sesame-init/sesame/internal/packaging/pipeline"
)

// The selectors and objects of the manifests.
const (
	servers    = "app=tf-demo"
	brokers    = "app=init-ra-server"
	deployment = "deployment/tf-demo-deployment"
	brokerage  = "deployment/init-ra-server-deployment"
	nodePort   = "31001"
)

// How long things may take on a slow machine.
const (
	bootLimit = 3 * time.Minute
	logLimit  = 2 * time.Minute
)

// sesame runs the operator's tool.
func (e *suite) sesame(ctx context.Context, args ...string) (string, error) {
	return command(ctx, "", filepath.Join(e.bin, "sesame"), args...)
}

// build makes and pushes the images of a build, and its manifests. Builds differ in what is measured: the number of
// processors.
func (e *suite) build(ctx context.Context, name string, cpus int, steps ...string) error {
	return e.buildWith(ctx, name, cpus, nil, steps...)
}

// buildWith is build with further options.
func (e *suite) buildWith(ctx context.Context, name string, cpus int, options []string, steps ...string) error {
	args := []string{"package", "-s", "sim", "-r", e.registry, "-g", e.tag(name), "--work", filepath.Join(e.work,
		"package"),
		"--programs", e.bin, "--cpus", fmt.Sprint(cpus), "--tls-name", "localhost,127.0.0.1,tf-demo-svc"}
	_, err := e.sesame(ctx, append(append(args, options...), steps...)...)
	return err
}

func (e *suite) path(elem ...string) string {
	return filepath.Join(append([]string{e.work, "package"}, elem...)...)
}

// measured reads what the build says of an enclave.
func (e *suite) measured(name string) (*pipeline.Measured, error) {
	text, err := os.ReadFile(e.path(name + ".json"))
	if err != nil {
		return nil, err
	}
	m := new(pipeline.Measured)
	return m, json.Unmarshal(text, m)
}

// overlay is what this suite changes in the manifests: a share of a processor that three replicas of which fit on a
// small machine, EPC if the nodes have it, and no autoscaler, since a hand scales here.
func (e *suite) overlay(ctx context.Context) (string, error) {
	broker, err := e.measured("broker")
	if err != nil {
		return "", err
	}
	server, err := e.measured("workload")
	if err != nil {
		return "", err
	}
	epc, err := e.nodesHaveEPC(ctx)
	if err != nil {
		return "", err
	}
	limit := func(name, cpu string, m *pipeline.Measured) string {
		var b strings.Builder
		fmt.Fprintf(&b, "  - target: {kind: Deployment, name: %s}\n    patch: |\n", name)
		fmt.Fprintf(&b, "      - {op: replace, path: /spec/template/spec/containers/0/resources/requests/cpu, value: %s}\n",
			"100m")
		fmt.Fprintf(&b, "      - {op: replace, path: /spec/template/spec/containers/0/resources/limits/cpu, value: %s}\n",
			cpu)
		if epc {
			fmt.Fprintf(&b, "      - {op: add, path: /spec/template/spec/containers/0/resources/limits/sgx.intel.com~1epc, value: %s}\n", m.EPC)
		}
		return b.String()
	}
	text := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: " + e.namespace +
		"\nresources: [../package/kubernetes]\npatches:\n" + limit("init-ra-server-deployment", "500m", broker) +
		limit("tf-demo-deployment", "200m", server) +
		"  - patch: |\n      $patch: delete\n      apiVersion: autoscaling/v2\n      kind: HorizontalPodAutoscaler\n" +
		"      metadata: {name: tf-demo}\n"
	dir := filepath.Join(e.work, "overlay")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644)
}

func (e *suite) nodesHaveEPC(ctx context.Context) (bool, error) {
	text, err := e.kubectl(ctx, "", "get", "nodes", "-o", `jsonpath={.items[*].status.allocatable.sgx\.intel\.com/epc}`)
	return strings.TrimSpace(text) != "", err
}

func (e *suite) apply(ctx context.Context, args ...string) error {
	dir, err := e.overlay(ctx)
	if err != nil {
		return err
	}
	_, err = e.kubectl(ctx, "", append([]string{"apply", "--validate=strict", "-k", dir}, args...)...)
	return err
}

// server is the NodePort's address.
func (e *suite) server(ctx context.Context) (string, error) {
	if e.nodeHost == "" {
		text, err := e.kubectl(ctx, "", "get", "nodes", "-o",
			`jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
		if err != nil {
			return "", err
		}
		if e.nodeHost = strings.TrimSpace(text); e.nodeHost == "" {
			return "", errors.New("the first node has no InternalIP; name one with -node")
		}
	}
	return e.nodeHost + ":" + nodePort, nil
}

// crt is the certificate that clients pin.
func (e *suite) crt() string { return e.path("keys", "server.crt") }

func (e *suite) sample() string { return filepath.Join("build", "model", "samples", "violet.jpg") }

// predict asks through the NodePort. The certificate is for localhost, whatever the node's address is.
func (e *suite) predict(ctx context.Context, crt string) (string, error) {
	server, err := e.server(ctx)
	if err != nil {
		return "", err
	}
	out, err := e.sesame(ctx, "predict", "--server", server, "--crt", crt, "--image", e.sample(),
		"--labels", filepath.Join("build", "model", "labels.txt"), "--retries", "4")
	if err == nil && !strings.Contains(out, "violet") {
		err = fmt.Errorf("the picture is violet, the answer is %q", out)
	}
	return strings.TrimSpace(out), err
}

// result is a benchmark's.
type result struct {
	Requests   int            `json:"requests"`
	Errors     map[string]int `json:"errors"`
	P50        float64        `json:"p50_ms"`
	P99        float64        `json:"p99_ms"`
	Throughput float64        `json:"tps"`
}

func (r *result) String() string {
	return fmt.Sprintf("%d requests, %.1f a second, p50 %.0f ms, p99 %.0f ms, errors %v", r.Requests, r.Throughput,
		r.P50, r.P99,
		r.Errors)
}

// bench measures through the NodePort.
func (e *suite) bench(ctx context.Context, args ...string) (*result, error) {
	server, err := e.server(ctx)
	if err != nil {
		return nil, err
	}
	out, err := e.sesame(ctx, append([]string{"bench", "--server", server, "--crt", e.crt(), "--image", e.sample(),
		"--json"}, args...)...)
	r := new(result)
	if jsonErr := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(r); jsonErr != nil {
		return nil, errors.Join(err, jsonErr)
	}
	return r, err
}
