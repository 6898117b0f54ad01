package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// checks are all promises, in the order in which they build on each other.
func (e *suite) checks() []check {
	return []check{
		{"the cluster answers", true, e.clusterAnswers},
		{"images are built and pushed without a container engine", true, e.imagesAreBuilt},
		{"building again gives the same digests", false, e.buildsAreReproducible},
		{"the server takes every manifest, strictly", false, e.manifestsAreValid},
		{"no container is privileged and none sees the host", false, e.podsAreConfined},
		{"the broker starts without a secret, and a pod says what it waits for", true, e.emptyBroker},
		{"secrets go to the verified broker, and the pod starts", true, e.secretsArrive},
		{"no secret is in a manifest or an image", false, e.nothingIsBaked},
		{"a prediction through the NodePort is right", true, e.predictsThroughNodePort},
		{"the reference's commands work in the client's image", false, e.referenceCommands},
		{"the Helm chart is sound, and its test passes", false, e.helmChart},
		{"a second opener of a pod's volumes is refused", false, e.secondOpener},
		{"three replicas give at least twice the throughput of one", false, e.scales},
		{"a pod without EPC left is Pending, and the scheduler says why", false, e.epcRunsOut},
		{"a new measurement rolls out with the old one still allowed", false, e.rollsOut},
		{"a withdrawn measurement is refused", false, e.withdraws},
		{"a key rotates by a rolling restart, and the old version stays valid to the end", false, e.rotates},
		{"deleting a pod under load fails no request", false, e.deletesUnderLoad},
		{"without the broker running pods serve, new ones wait, and start when it is back", false, e.brokerGoes},
		{"a pod whose model volume was tampered with refuses, and says why", false, e.tampered},
		{"three replicas with keys of their own prove themselves before a picture is sent", false, e.attestedInference},
	}
}

func (e *suite) clusterAnswers(ctx context.Context) (string, error) {
	nodes, err := e.kubectl(ctx, "", "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return "", err
	}
	_, _ = e.kubectl(ctx, "", "delete", "namespace", e.namespace, "--ignore-not-found", "--timeout=90s")
	_, err = e.kubectl(ctx, "", "create", "namespace", e.namespace)
	epc, epcErr := e.nodesHaveEPC(ctx)
	return fmt.Sprintf("nodes %s, EPC %v", nodes, epc), errors.Join(err, epcErr)
}

// firstCPUs and laterCPUs make two builds with different measurements.
const (
	firstCPUs = 4
	laterCPUs = 3
)

func (e *suite) imagesAreBuilt(ctx context.Context) (string, error) {
	// Keys and platform of an earlier run would do, but a clean build is the promise.
	if err := os.RemoveAll(e.path()); err != nil {
		return "", err
	}
	if err := e.build(ctx, "first", firstCPUs, "--push"); err != nil {
		return "", err
	}
	m, err := e.measured("workload")
	if err != nil {
		return "", err
	}
	return "MRENCLAVE " + m.MREnclave[:16] + "…", nil
}

// digests are those of the images as their layouts name them.
func (e *suite) digests() (string, error) {
	var all strings.Builder
	for _, name := range []string{"init_ra_server", "tf_demo", "tf_demo_client"} {
		text, err := os.ReadFile(e.path("oci", name, "index.json"))
		if err != nil {
			return "", err
		}
		all.Write(text)
	}
	return all.String(), nil
}

func (e *suite) buildsAreReproducible(ctx context.Context) (string, error) {
	before, err := e.digests()
	if err != nil {
		return "", err
	}
	// Everything but the inputs goes: keys, platform, and the downloaded Python.
	for _, made := range []string{".steps", "root", "model.volume", "instances", "packed", "oci"} {
		if err := os.RemoveAll(e.path(made)); err != nil {
			return "", err
		}
	}
	if err := e.build(ctx, "first", firstCPUs, "platform", "keys", "root", "volume", "workload", "broker",
		"images"); err != nil {
		return "", err
	}
	after, err := e.digests()
	if err == nil && before != after {
		err = errors.New("the digests differ")
	}
	return "", err
}

func (e *suite) manifestsAreValid(ctx context.Context) (string, error) {
	for _, dir := range []string{"packaging/kubernetes", "packaging/kubernetes-sim"} {
		if _, err := e.kubectl(ctx, "", "apply", "--dry-run=server", "--validate=strict", "-k", dir); err != nil {
			return "", err
		}
	}
	return "", e.apply(ctx, "--dry-run=server")
}

func (e *suite) podsAreConfined(ctx context.Context) (string, error) {
	for _, dir := range []string{"packaging/kubernetes", "packaging/kubernetes-sim"} {
		text, err := command(ctx, "", "kubectl", "kustomize", dir)
		if err != nil {
			return "", err
		}
		for _, word := range []string{"privileged: true", "hostPath", "hostNetwork", "hostPID"} {
			if strings.Contains(text, word) {
				return "", fmt.Errorf("%s has %q", dir, word)
			}
		}
		if dir == "packaging/kubernetes" && (strings.Contains(text, "Unconfined") || strings.Contains(text, "add:")) {
			return "", errors.New("the manifests for SGX give more than an ordinary pod's rights")
		}
	}
	// The server itself says, on standard error, what its strictest standard for pods would refuse.
	const label = "pod-security.kubernetes.io/warn"
	if _, err := e.kubectl(ctx, "", "label", "namespace", e.namespace, label+"=restricted"); err != nil {
		return "", err
	}
	out, err := command(ctx, "", "sh", "-c", `exec kubectl --namespace "$0" apply --dry-run=server -k packaging/kubernetes 2>&1`,
		e.namespace)
	if err == nil && strings.Contains(out, "Warning") {
		err = errors.New(out)
	}
	_, labelErr := e.kubectl(ctx, "", "label", "namespace", e.namespace, label+"-")
	return "the pods for SGX meet the standard \"restricted\"; the simulator's have a few capabilities and no seccomp filter",
		errors.Join(err, labelErr)
}

func (e *suite) emptyBroker(ctx context.Context) (string, error) {
	if err := e.apply(ctx); err != nil {
		return "", err
	}
	if err := e.waitReady(ctx, "app=sim-pccs", 1, bootLimit); err != nil {
		return "", err
	}
	if err := e.waitReady(ctx, brokers, 1, bootLimit); err != nil {
		return "", err
	}
	return e.waitLog(ctx, bootLimit, []string{"-l", servers}, "image_key")
}

func (e *suite) secretsArrive(ctx context.Context) (string, error) {
	// The first policy is measured into the broker; only the secrets are missing.
	if err := e.putSecrets(ctx); err != nil {
		return "", err
	}
	if err := e.waitReady(ctx, servers, 1, bootLimit); err != nil {
		return "", err
	}
	return e.waitLog(ctx, logLimit, []string{"-l", servers}, "attested, keys released")
}

func (e *suite) nothingIsBaked(ctx context.Context) (string, error) {
	manifests, err := command(ctx, "", "kubectl", "kustomize", filepath.Join(e.work, "overlay"))
	if err != nil {
		return "", err
	}
	searched := 0
	for _, name := range []string{"image_key", "model_key", "ssl_config", "broker-signer.pem", "workload-signer.pem",
		"admin.key"} {
		secret, err := os.ReadFile(e.path("keys", name))
		if err != nil {
			return "", err
		}
		canary := canaryOf(secret)
		if strings.Contains(manifests, canary) {
			return "", fmt.Errorf("%s is in a manifest", name)
		}
		for _, dir := range []string{"packed", "python"} {
			n, err := searchTree(e.path(dir), canary)
			if err != nil {
				return "", fmt.Errorf("%s: %w", name, err)
			}
			searched += n
		}
	}
	return fmt.Sprintf("%d files searched", searched), nil
}

// canaryOf is a part of a secret that occurs nowhere else: a line from its middle.
func canaryOf(secret []byte) string {
	text := strings.TrimSpace(string(secret))
	lines := strings.Split(text, "\n")
	canary := strings.TrimSpace(lines[len(lines)/2])
	if at := strings.Index(canary, `PRIVATE KEY-----\n`); at >= 0 {
		canary = canary[at+len(`PRIVATE KEY-----\n`):]
	}
	return canary[:min(len(canary), 47)]
}

// searchTree fails if a file of a tree holds text, and counts the files.
func searchTree(dir, text string) (files int, err error) {
	err = filepath.WalkDir(dir, func(file string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		files++
		if strings.Contains(string(content), text) {
			return fmt.Errorf("it is in %s", file)
		}
		return nil
	})
	return files, err
}

func (e *suite) predictsThroughNodePort(ctx context.Context) (answer string, err error) {
	err = until(ctx, time.Minute, "answered", func(ctx context.Context) (bool, error) {
		answer, err = e.predict(ctx, e.crt())
		return err == nil, err
	})
	return answer, err
}

func (e *suite) referenceCommands(ctx context.Context) (string, error) {
	var last string
	for i, args := range [][]string{
		{"inception_client.py", "--server=tf-demo-svc:9001", "--crt", "server.crt", "--image", "cat.jpg"},
		{"resnet_client_grpc.py", "--server=tf-demo-svc:9001", "--crt", "server.crt", "--image", "cat.jpg"},
		{"benchmark.py", "--server", "tf-demo-svc:9001", "--crt", "server.crt", "--cnum", "4", "--loop", "3", "--image",
			"cat.jpg"},
	} {
		out, err := e.inClient(ctx, "client-"+strconv.Itoa(i), append([]string{"python3"}, args...)...)
		if err != nil {
			return "", err
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		last = lines[len(lines)-1]
		if i < 2 && !strings.Contains(out, "probability") || i == 2 && !strings.HasPrefix(last, "summary: cnum 4") {
			return "", fmt.Errorf("%s printed %q", args[0], out)
		}
	}
	return last, nil
}

// inClient runs a command in a pod of the client's image and returns its output.
func (e *suite) inClient(ctx context.Context, name string, args ...string) (string, error) {
	_, err := e.kubectl(ctx, "", append([]string{"run", name, "--restart=Never",
		"--image=" + e.registry + "/tf_demo_client:" + e.tag("first"),
		"--command", "--"}, args...)...)
	if err != nil {
		return "", err
	}
	defer func() { _, _ = e.kubectl(context.WithoutCancel(ctx), "", "delete", "pod", name, "--wait=false") }()
	err = until(ctx, logLimit, "ended", func(ctx context.Context) (bool, error) {
		phase, err := e.kubectl(ctx, "", "get", "pod", name, "-o", "jsonpath={.status.phase}")
		if phase == "Failed" {
			text, _ := e.logs(ctx, name)
			return true, errors.New(text)
		}
		return phase == "Succeeded", err
	})
	if err != nil {
		return "", err
	}
	return e.logs(ctx, name)
}

func (e *suite) secondOpener(ctx context.Context) (string, error) {
	pods, err := e.pods(ctx, servers)
	if err != nil {
		return "", err
	}
	if len(pods) == 0 {
		return "", errors.New("there is no pod")
	}
	_, err = e.kubectl(ctx, "", "exec", pods[0].Metadata.Name, "-c", "tf-demo", "--", "occlum", "run",
		"--platform=/platform",
		"/bin/tensorflow_model_server")
	if err == nil {
		return "", errors.New("a second instance started on the same files")
	}
	line := lineWith(err.Error(), "another running instance holds the volume")
	if line == "" {
		return "", fmt.Errorf("refused, but not because of the lock: %w", err)
	}
	return line, nil
}
