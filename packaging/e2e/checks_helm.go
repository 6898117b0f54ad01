package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// chart is the Helm chart of the same content.
const chart = "packaging/helm/sesame"

// helmChart lints the chart, lets the server take what it renders in both modes, and runs its test against what the
// manifests have deployed, whose names are the same.
func (e *suite) helmChart(ctx context.Context) (string, error) {
	helm, err := exec.LookPath(e.helm)
	if err != nil {
		return "", fmt.Errorf("%w: there is no helm command", errSkipped)
	}
	// A helm without a cluster takes an old version for granted, unless it is told one.
	images := []string{"--kube-version", "1.34.0", "--set", "registry=" + e.registry, "--set", "tag=" + e.tag("first")}
	if _, err := command(ctx, "", helm, append([]string{"lint", "--strict", chart}, images...)...); err != nil {
		return "", err
	}
	for _, bad := range []string{"mode=debug", "server.nodePort=0", "unknown=1", "registry="} {
		_, err := command(ctx, "", helm, append(append([]string{"template", "x", chart}, images...), "--set", bad)...)
		if err == nil {
			return "", fmt.Errorf("the schema takes %s", bad)
		}
	}
	for _, mode := range []string{"sgx", "simulator"} {
		text, err := command(ctx, "", helm, append([]string{"template", "sesame", chart, "--set", "mode=" + mode}, images...)...)
		if err != nil {
			return "", err
		}
		if _, err := e.kubectl(ctx, text, "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err != nil {
			return "", fmt.Errorf("mode %s: %w", mode, err)
		}
		if strings.Contains(text, "privileged: true") || strings.Contains(text, "hostPath") {
			return "", fmt.Errorf("mode %s gives the host away", mode)
		}
	}
	return "lint, schema, server's dry run of both modes", errors.Join(e.helmTest(ctx, helm, images))
}

// helmTest runs the chart's test pod.
func (e *suite) helmTest(ctx context.Context, helm string, images []string) error {
	text, err := command(ctx, "", helm, append([]string{"template", "sesame", chart, "--show-only", "templates/tests/predict.yaml"},
		images...)...)
	if err != nil {
		return err
	}
	if _, err := e.kubectl(ctx, text, "apply", "-f", "-"); err != nil {
		return err
	}
	defer e.removePod(ctx, "sesame-predict")
	_, err = e.kubectl(ctx, "", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/sesame-predict", "--timeout=60s")
	if err != nil {
		text, _ := e.logs(ctx, "sesame-predict")
		return fmt.Errorf("%w: %s", err, text)
	}
	return nil
}
