package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/packaging/standin"
	"github.com/sesame-init/sesame/packaging/standin/network"
	"github.com/sesame-init/sesame/packaging/standin/shapes"
)

// small learns enough within seconds to tell that learning works: guessing would be right one time in ten.
var small = plan{
	sizes: func(classes int) network.Sizes {
		return network.Sizes{Conv1: 8, Conv2: 12, Hidden: 64, Classes: classes}
	},
	training: 192, heldOut: 40, epochs: 8, heads: 20, required: 0.4,
}

func TestTrainingMakesAModelThatTheServerLoads(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := small.run(t.Context(), []string{"-o", dir}, &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
	m, err := standin.Load("resnet", filepath.Join(dir, "resnet"))
	if err != nil {
		t.Fatal(err)
	}
	labels, err := os.ReadFile(filepath.Join(dir, "labels.txt"))
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(labels))
	if m.Version != 1 || len(names) != m.Network.Classes() {
		t.Fatalf("version %d has %d classes, %d labels", m.Version, m.Network.Classes(), len(names))
	}
	right := 0
	for class, name := range names {
		f, err := os.Open(filepath.Join(dir, "samples", name+".jpg"))
		if err != nil {
			t.Fatal(err)
		}
		image, err := client.ReadImage(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		answer, err := m.Network.Predict(image)
		if err != nil {
			t.Fatal(err)
		}
		if client.Best(answer) == class {
			right++
		}
	}
	if right <= 1 {
		t.Errorf("%d of %d samples are recognised", right, len(names))
	}
}

func TestABadModelIsNotWritten(t *testing.T) {
	dir := t.TempDir()
	strict := plan{small.sizes, 32, 10, 1, 1, 1}
	err := strict.run(t.Context(), []string{"-o", dir}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "is below 1.00") {
		t.Errorf("error is %v, not that the accuracy is too low", err)
	}
	if found, _ := filepath.Glob(filepath.Join(dir, "resnet", "*", "*")); found != nil {
		t.Errorf("%q were written", found)
	}
}

func TestInterruptedTrainingEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := small.run(ctx, []string{"-o", t.TempDir()}, &bytes.Buffer{}); err != context.Canceled {
		t.Errorf("error is %v, not %v", err, context.Canceled)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"-o", t.TempDir(), "more"}, {"-x"}} {
		if small.run(t.Context(), args, &bytes.Buffer{}) == nil {
			t.Errorf("arguments %q were taken", args)
		}
	}
}

// TestHeldOutImagesAreNeverTrainedOn holds as long as the plan fits between the streams of random numbers.
func TestHeldOutImagesAreNeverTrainedOn(t *testing.T) {
	if streamTraining+full.training > streamHeldOut || streamHeldOut+full.heldOut > streamSamples {
		t.Error("streams overlap")
	}
	if full.required < 0.95 || full.sizes(len(shapes.Classes())) != network.FullSize(len(shapes.Classes())) {
		t.Errorf("the demo's model asks too little: %+v", full.sizes(len(shapes.Classes())))
	}
}
