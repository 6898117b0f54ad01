// Command makemodel writes the demo's model and pictures to ask it about.
//
//	makemodel -o build/model [-seed 1]
//
// writes below build/model
//
//	resnet/1/model.safetensors  the weights; resnet is the server's --model_base_path
//	labels.txt                  one class a line, in the order of the outputs
//	samples/CLASS.jpg           a picture of each class, larger than the network's input, as from a camera
//
// The same seed gives the same files.
package main

import (
	"errors"
	"flag"
	"fmt"
	"image/jpeg"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/lab/standin"
	"github.com/sesame-init/sesame/lab/standin/network"
	"github.com/sesame-init/sesame/lab/standin/pictures"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, network.Features); err != nil {
		fmt.Fprintln(os.Stderr, "makemodel: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string, out io.Writer, features int) error {
	flags := flag.NewFlagSet("makemodel", flag.ContinueOnError)
	folder := flags.String("o", "", "`folder` to write to (required)")
	seed := flags.Uint64("seed", 1, "`number` that all randomness follows from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *folder == "" || flags.NArg() > 0 {
		return errors.New("usage: makemodel -o FOLDER [-seed NUMBER]")
	}
	if err := writeSamples(filepath.Join(*folder, "samples"), *seed); err != nil {
		return fmt.Errorf("drawing samples: %w", err)
	}
	var typical [][]float32
	for class := range pictures.Classes() {
		typical = append(typical, client.Pixels(pictures.Typical(class, network.Size)))
	}
	n := network.New(features, typical, rand.New(rand.NewPCG(*seed, 0)))
	if err := write(*folder, n); err != nil {
		return fmt.Errorf("writing model: %w", err)
	}
	fmt.Fprintf(out, "model of %d classes, %d bytes of weights, in %s\n", n.Classes(), n.WeightBytes(), *folder)
	return nil
}

func write(folder string, n *network.Network) error {
	labels := strings.Join(pictures.Classes(), "\n") + "\n"
	if err := os.WriteFile(filepath.Join(folder, "labels.txt"), []byte(labels), 0o644); err != nil {
		return err
	}
	version := filepath.Join(folder, "resnet", "1")
	if err := os.MkdirAll(version, 0o755); err != nil {
		return err
	}
	// The name appears with the whole file, so that an interrupted run leaves nothing that looks like a model.
	path := filepath.Join(version, standin.FileName)
	f, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	if err := errors.Join(n.Write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}

func writeSamples(folder string, seed uint64) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for class, name := range pictures.Classes() {
		f, err := os.Create(filepath.Join(folder, name+".jpg"))
		if err != nil {
			return err
		}
		picture := pictures.Draw(class, 480, rand.New(rand.NewPCG(seed, uint64(1+class))))
		if err := errors.Join(jpeg.Encode(f, picture, &jpeg.Options{Quality: 90}), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
