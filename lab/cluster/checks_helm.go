package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// chart is the Helm chart of the same content.
const chart = "packaging/helm/sesame"

// simulatorOptions are what the overlay of the simulator changes beside the mode.
var simulatorOptions = []string{"--set", "broker.storage=", "--set", "pccsURL=http://sim-pccs:8081/sgx/certification/v4/"}

// helmChart lints the chart, lets the server take what it renders in both modes, and runs its test against what the
// manifests have deployed, whose names are the same.
func (e *suite) helmChart(ctx context.Context) (string, error) {
	// A helm without a cluster takes an old version for granted, unless it is told one.
	images := []string{"--kube-version", "1.34.0", "--set", "registry=" + e.registry, "--set", "tag=" + e.tag("first")}
	if _, err := command(ctx, "", e.helm, append([]string{"lint", "--strict", chart}, images...)...); err != nil {
		return "", err
	}
	for _, bad := range []string{"mode=debug", "server.nodePort=0", "unknown=1", "registry="} {
		_, err := command(ctx, "", e.helm, append(append([]string{"template", "x", chart}, images...), "--set", bad)...)
		if err == nil {
			return "", fmt.Errorf("the schema takes %s", bad)
		}
	}
	for mode, as := range map[string]struct {
		manifests string
		options   []string
	}{
		"sgx":       {"packaging/kubernetes", nil},
		"simulator": {"packaging/kubernetes-sim", simulatorOptions},
	} {
		args := append([]string{"template", "sesame", chart, "--set", "mode=" + mode}, images...)
		text, err := command(ctx, "", e.helm, append(args, as.options...)...)
		if err != nil {
			return "", err
		}
		if err := e.sameContent(ctx, as.manifests, text); err != nil {
			return "", fmt.Errorf("mode %s: %w", mode, err)
		}
		if _, err := e.kubectl(ctx, text, "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err != nil {
			return "", fmt.Errorf("mode %s: %w", mode, err)
		}
		if strings.Contains(text, "privileged: true") || strings.Contains(text, "hostPath") {
			return "", fmt.Errorf("mode %s gives the host away", mode)
		}
	}
	return "lint, schema, content of the manifests, server's dry run of both modes, install, secrets, test",
		e.helmInstall(ctx)
}

// sameContent compares what the chart renders with the manifests.
func (e *suite) sameContent(ctx context.Context, dir, rendered string) error {
	built, err := command(ctx, "", "kubectl", "kustomize", dir)
	if err != nil {
		return err
	}
	manifests, err := e.objects(ctx, built)
	if err != nil {
		return err
	}
	chart, err := e.objects(ctx, rendered)
	if err != nil {
		return err
	}
	return sameObjects(manifests, chart, "Pod sesame-predict")
}

// helmInstall installs the chart beside the deployment, in a namespace and at a NodePort of its own, gives its broker the
// secrets, and runs the chart's test.
func (e *suite) helmInstall(ctx context.Context) error {
	h := *e
	h.namespace, h.forward = e.namespace+"-helm", nil
	defer func() {
		h.stopForward()
		_, _ = h.kubectl(context.WithoutCancel(ctx), "", "delete", "namespace", h.namespace, "--ignore-not-found",
			"--wait=false")
	}()
	if _, err := h.kubectl(ctx, "", "delete", "namespace", h.namespace, "--ignore-not-found",
		"--timeout=90s"); err != nil {
		return err
	}
	if _, err := h.kubectl(ctx, "", "create", "namespace", h.namespace); err != nil {
		return err
	}
	if _, err := h.kubectl(ctx, "", "create", "secret", "generic", "sim-platform", "--from-file="+h.path("kubernetes",
		"platform")); err != nil {
		return err
	}
	args := []string{"install", "sesame", chart, "--namespace", h.namespace, "--set", "mode=simulator",
		"--set", "registry=" + h.registry, "--set", "tag=" + h.tag("first"), "--set", "server.nodePort=31002"}
	if _, err := command(ctx, "", h.helm, append(args, simulatorOptions...)...); err != nil {
		return err
	}
	if err := h.waitReady(ctx, brokers, 1, bootLimit); err != nil {
		return err
	}
	if err := h.putSecrets(ctx); err != nil {
		return err
	}
	if err := h.waitReady(ctx, servers, 1, bootLimit); err != nil {
		return errors.Join(err, errors.New(h.diagnose(ctx)))
	}
	_, err := command(ctx, "", h.helm, "test", "sesame", "--namespace", h.namespace, "--timeout", "90s", "--logs")
	return err
}
