package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sesame-init/sesame/internal/occlum/occlumconf"
)

func TestWhatEPCIsLeftOfANode(t *testing.T) {
	left, err := epcLeft("node0 16Gi\nnode1 17179869184\nnode2\n",
		"node0 2000Mi 1800Mi\nnode0\nnode1 100Mi\n 5Mi\nnode1 20Gi\n")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]occlumconf.Size{"node0": (16<<10 - 3800) << 20, "node1": 0}
	delete(left, "") // a pod that is on no node
	if !maps.Equal(left, want) {
		t.Errorf("%v, want %v", left, want)
	}
	for _, bad := range []string{"1.5Gi", "many", "-1", "1Ti"} {
		if n, err := quantity(bad); err == nil {
			t.Errorf("%s is %v", bad, n)
		}
	}
}

func TestASoloPodIsTheDeploymentsOwnButForImageAndTampering(t *testing.T) {
	const template = `{"volumes":[{"name":"instance"}],"securityContext":{"runAsUser":0},"restartPolicy":"Always",
		"initContainers":[{"name":"stage","image":"a","command":["sesame"]}],"containers":[{"name":"tf-demo","image":"a","env":[]}]}`
	for tamper, inits := range map[string]int{"": 1, "print()": 2} {
		text, err := soloManifest("solo", template, "server:2", "client:1", tamper)
		if err != nil {
			t.Fatal(err)
		}
		var pod struct {
			Kind string
			Spec struct {
				RestartPolicy              string
				SecurityContext            map[string]int
				InitContainers, Containers []struct {
					Name, Image string
					Command     []string
				}
			}
		}
		if err := json.Unmarshal([]byte(text), &pod); err != nil {
			t.Fatal(err)
		}
		s := pod.Spec
		if pod.Kind != "Pod" || s.RestartPolicy != "Never" || len(s.InitContainers) != inits ||
			s.Containers[0].Image != "server:2" ||
			s.InitContainers[0].Image != "server:2" || s.SecurityContext == nil {
			t.Errorf("%q: %s", tamper, text)
		}
		if last := s.InitContainers[inits-1]; tamper != "" && (last.Image != "client:1" || last.Command[2] != tamper) {
			t.Errorf("the tampering container is %+v", last)
		}
	}
	if _, err := soloManifest("solo", "{}", "", "", ""); err == nil {
		t.Error("a template without containers is taken")
	}
}

func TestTheReportCountsAndNamesEveryCheck(t *testing.T) {
	var terminal bytes.Buffer
	file := filepath.Join(t.TempDir(), "report.txt")
	r, err := newReport(file, &terminal)
	if err != nil {
		t.Fatal(err)
	}
	r.line("one", "detail", nil, time.Second)
	r.line("two", "", fmt.Errorf("%w: no EPC", errSkipped), 0)
	r.line("three", "", errors.New("reason"), 0)
	r.diagnosis("pods\nevents\n")
	if failed := r.finish(); failed != 1 {
		t.Errorf("%d failed", failed)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pass    1.0 s  one: detail\n", "skip    0.0 s  two: left out: no EPC\n",
		"FAIL    0.0 s  three: reason\n",
		"1 passed, 1 failed, 1 left out"} {
		if !strings.Contains(string(text), want) || !strings.Contains(terminal.String(), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if !strings.Contains(string(text), "    events\n") || strings.Contains(terminal.String(), "events") {
		t.Error("the diagnosis belongs into the file alone")
	}
}

func TestACanaryIsTheSecretPartOfAFile(t *testing.T) {
	for text, want := range map[string]string{
		"00-11-22\n": "00-11-22",
		"-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n":               "MIGHAgEA",
		`server_key: "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n"`: `MIGHAgEA\n-----END PRIVATE KEY-----\n"`,
	} {
		if got := canaryOf([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestChartAndManifestsAreComparedWhole(t *testing.T) {
	const service = `{"kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":5000}]}}`
	read := func(text string) map[string]any {
		t.Helper()
		o, err := readObjects(text, "r/", ":t")
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	manifests := read(`{"kind":"List","items":[` + service + `,{"kind":"Pod","metadata":{"name":"p"},"spec":[{"image":"i"}]}]}`)
	const pod = `{"kind":"Pod","metadata":{"name":"p"},"spec":[{"image":"r/i:t","imagePullPolicy":"Always"}]}`
	const test = `{"kind":"Pod","metadata":{"name":"test"}}`
	if err := sameObjects(manifests, read(service+pod+test), "Pod test"); err != nil {
		t.Error(err)
	}
	for name, chart := range map[string]string{
		"another port": strings.Replace(service, "5000", "5001", 1) + pod, "no pod": service, "more": service + pod + test,
		"another image": service + strings.Replace(pod, "i:t", "j:t", 1),
	} {
		if err := sameObjects(manifests, read(chart), ""); err == nil {
			t.Errorf("%s is the same content", name)
		}
	}
}
