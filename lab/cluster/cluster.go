package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// suite is one run.
type suite struct {
	registry, namespace, bin, work, nodeHost, helm string

	report  *report
	id      runID
	forward *forward
}

// runID tells the images of one run from those of an earlier one.
type runID string

// pollInterval is how often the cluster is asked whether something has happened.
const pollInterval = 500 * time.Millisecond

// begin names the run.
func (e *suite) begin(context.Context) { e.id = runID(fmt.Sprintf("e2e-%x", time.Now().Unix())) }

// tag of a build.
func (e *suite) tag(build string) string { return string(e.id) + "-" + build }

// command runs a program with input and returns its standard output.
func command(ctx context.Context, input, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err,
			strings.TrimSpace(errs.String()+out.String()))
	}
	return out.String(), nil
}

func (e *suite) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	return command(ctx, input, "kubectl", append([]string{"--namespace", e.namespace}, args...)...)
}

// until asks again and again until the answer is yes.
func until(ctx context.Context, limit time.Duration, what string, yes func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		ok, err := yes(ctx)
		if ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("after %v: not %s", limit, what), last)
		}
	}
}

// pod is what is read of a pod.
type pod struct {
	Metadata struct {
		Name              string            `json:"name"`
		Labels            map[string]string `json:"labels"`
		DeletionTimestamp string            `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		NodeName   string `json:"nodeName"`
		Containers []struct {
			Image string `json:"image"`
		} `json:"containers"`
	} `json:"spec"`
	Status struct {
		Phase      string `json:"phase"`
		PodIP      string `json:"podIP"`
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
	} `json:"status"`
}

func (p *pod) condition(name string) (status, message string) {
	for _, c := range p.Status.Conditions {
		if c.Type == name {
			return c.Status, c.Message
		}
	}
	return "", ""
}

func (p *pod) ready() bool {
	status, _ := p.condition("Ready")
	return status == "True" && p.Metadata.DeletionTimestamp == ""
}

// pods are those of a label selector that are not being deleted.
func (e *suite) pods(ctx context.Context, selector string) ([]pod, error) {
	text, err := e.kubectl(ctx, "", "get", "pods", "-l", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []pod `json:"items"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	var alive []pod
	for _, p := range list.Items {
		if p.Metadata.DeletionTimestamp == "" {
			alive = append(alive, p)
		}
	}
	return alive, nil
}

// waitReady waits for exactly n pods, all of them ready.
func (e *suite) waitReady(ctx context.Context, selector string, n int, limit time.Duration) error {
	return until(ctx, limit, fmt.Sprintf("%d ready pods of %s", n, selector), func(ctx context.Context) (bool, error) {
		pods, err := e.pods(ctx, selector)
		if err != nil || len(pods) != n {
			return false, err
		}
		for i := range pods {
			if !pods[i].ready() {
				return false, nil
			}
		}
		return true, nil
	})
}

// logs are the lines of a pod, or of all pods of a selector ("-l app=x").
func (e *suite) logs(ctx context.Context, of ...string) (string, error) {
	return e.kubectl(ctx, "", append([]string{"logs", "--tail=-1", "--all-containers"}, of...)...)
}

// waitLog waits until a log has a line with all words, and returns it.
func (e *suite) waitLog(ctx context.Context, limit time.Duration, of []string, words ...string) (line string,
	err error) {
	err = until(ctx, limit, "a line with "+strings.Join(words, " and "), func(ctx context.Context) (bool, error) {
		text, err := e.logs(ctx, of...)
		if err != nil {
			return false, nil // not started yet
		}
		line = lineWith(text, words...)
		return line != "", nil
	})
	return line, err
}

// lineWith is the first line that has all words.
func lineWith(text string, words ...string) string {
	for line := range strings.Lines(text) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// diagnose prints what a person wants to see after a failed check.
func (e *suite) diagnose(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	var b strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
		{"logs", "--tail=30", "--all-containers", "-l", "app=init-ra-server"},
		{"logs", "--tail=30", "--all-containers", "-l", "app=tf-demo"},
	} {
		text, err := e.kubectl(ctx, "", args...)
		fmt.Fprintf(&b, "kubectl %s\n%s", strings.Join(args, " "), text)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}
