package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/internal/testenv"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/network"
	"github.com/sesame-init/sesame/lab/standin/pictures"
)

func makeModel(t *testing.T, dir string, features int, args ...string) *standin.Model {
	t.Helper()
	var out bytes.Buffer
	if err := run(append([]string{"-o", dir}, args...), &out, features); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	m, err := standin.Load("resnet", filepath.Join(dir, "resnet"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTheModelKnowsItsSamplesAndPicturesItHasNotSeen(t *testing.T) {
	dir := t.TempDir()
	m := makeModel(t, dir, network.Features)
	labels, err := os.ReadFile(filepath.Join(dir, "labels.txt"))
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(labels))
	if m.Version != 1 || len(names) != m.Network.Classes() {
		t.Fatalf("version %d has %d classes, %d labels", m.Version, m.Network.Classes(), len(names))
	}
	check := func(what string, class int, pixels []float32) {
		t.Helper()
		answer, err := m.Network.Predict(pixels)
		if err != nil {
			t.Fatal(err)
		}
		if best := client.Best(answer); best != class || answer[best] < 0.5 {
			t.Errorf("%s: %s with probability %v, want %s", what, names[best], answer[best], names[class])
		}
	}
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
		check("sample", class, image)
		for seed := range uint64(testenv.Sweep(5, 1)) {
			check("new picture", class, client.Pixels(pictures.Draw(class, network.Size, rand.New(rand.NewPCG(seed, 1<<20)))))
		}
	}
}

func TestTheSameSeedMakesTheSameFiles(t *testing.T) {
	one, two, other := t.TempDir(), t.TempDir(), t.TempDir()
	makeModel(t, one, 1)
	makeModel(t, two, 1)
	makeModel(t, other, 1, "-seed", "2")
	read := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, name := range []string{"resnet/1/model.safetensors", "samples/red.jpg"} {
		if !bytes.Equal(read(one, name), read(two, name)) {
			t.Errorf("%s differs between two runs", name)
		}
		if bytes.Equal(read(one, name), read(other, name)) {
			t.Errorf("%s does not depend on the seed", name)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"-o", t.TempDir(), "more"}, {"-x"}} {
		if run(args, &bytes.Buffer{}, 1) == nil {
			t.Errorf("arguments %q were taken", args)
		}
	}
}
