// Command train makes the demo's model: it draws labelled images (package shapes), trains the classifier (package
// network) on them and tests it on others that it has not seen.
//
//	train -o build/model [-seed 1]
//
// writes below build/model
//
//	resnet/1/model.safetensors  the weights; resnet is the server's --model_base_path
//	labels.txt                  one class a line, in the order of the outputs
//	samples/CLASS.jpg           a held-out image of each class
//
// and prints the accuracy on held-out images. It fails, and leaves no model, where
// that is below 95 %. The same seed gives the same model on the same kind of processor.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"image/jpeg"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sesame-init/sesame/client"
	"github.com/sesame-init/sesame/packaging/standin"
	"github.com/sesame-init/sesame/packaging/standin/network"
	"github.com/sesame-init/sesame/packaging/standin/shapes"
)

// plan is how much effort is made, and how good the model has to be.
type plan struct {
	sizes             func(classes int) network.Sizes
	training, heldOut int     // images
	epochs, heads     int     // see network.Training
	required          float64 // accuracy on the held-out images
}

// full takes about 60 s of processor time.
var full = plan{network.FullSize, 2000, 300, 6, 2, 0.95}

const rate = 0.02

// Streams of random numbers below one seed, so that no held-out image is ever seen in training.
const (
	streamWeights = iota
	streamTraining
	streamHeldOut = streamTraining + 1<<20
	streamSamples = streamHeldOut + 1<<20
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := full.run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "train: "+err.Error())
		os.Exit(1)
	}
}

func (p plan) run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("train", flag.ContinueOnError)
	folder := flags.String("o", "", "`folder` to write to (required)")
	seed := flags.Uint64("seed", 1, "`number` that all randomness follows from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *folder == "" || flags.NArg() > 0 {
		return errors.New("usage: train -o FOLDER [-seed NUMBER]")
	}
	if err := writeSamples(filepath.Join(*folder, "samples"), *seed); err != nil {
		return fmt.Errorf("drawing samples: %w", err)
	}
	n, err := p.train(ctx, *seed, out)
	if err != nil {
		return err
	}
	if err := write(*folder, n); err != nil {
		return fmt.Errorf("writing model: %w", err)
	}
	return nil
}

func random(seed uint64, stream int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(stream))) }

// train makes a network and finds out how good it is.
func (p plan) train(ctx context.Context, seed uint64, out io.Writer) (*network.Network, error) {
	start := time.Now()
	classes := len(shapes.Classes())
	r := random(seed, streamWeights)
	n := network.New(p.sizes(classes), r)
	examples := make([]network.Example, p.training)
	parallel(p.training, func(i int) {
		image := shapes.Draw(i%classes, network.Size, random(seed, streamTraining+i))
		examples[i] = n.Example(client.Pixels(image), i%classes)
	})
	fmt.Fprintf(out, "%d images of %d classes drawn in %v\n", p.training, classes, since(start))
	err := n.Train(ctx, examples, network.Training{Epochs: p.epochs, HeadEpochs: p.heads, Rate: rate, Rand: r,
		Progress: func(epoch int, loss float64) {
			fmt.Fprintf(out, "epoch %d of %d: loss %.3f, %v\n", epoch, p.epochs, loss, since(start))
		}})
	if err != nil {
		return nil, err
	}
	var right atomic.Int32
	parallel(p.heldOut, func(i int) {
		image := shapes.Draw(i%classes, network.Size, random(seed, streamHeldOut+i))
		if answer, err := n.Predict(client.Pixels(image)); err == nil && client.Best(answer) == i%classes {
			right.Add(1)
		}
	})
	accuracy := float64(right.Load()) / float64(p.heldOut)
	fmt.Fprintf(out, "held-out accuracy %.2f %% of %d images; %d bytes of weights; %v\n",
		100*accuracy, p.heldOut, n.WeightBytes(), since(start))
	if accuracy < p.required {
		return nil, fmt.Errorf("held-out accuracy %.3f is below %.2f", accuracy, p.required)
	}
	return n, nil
}

func since(start time.Time) time.Duration { return time.Since(start).Round(100 * time.Millisecond) }

func write(folder string, n *network.Network) error {
	labels := strings.Join(shapes.Classes(), "\n") + "\n"
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

// writeSamples draws them larger than the network's input, as a camera would.
func writeSamples(folder string, seed uint64) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for class, name := range shapes.Classes() {
		f, err := os.Create(filepath.Join(folder, name+".jpg"))
		if err != nil {
			return err
		}
		image := shapes.Draw(class, 480, random(seed, streamSamples+class))
		if err := errors.Join(jpeg.Encode(f, image, &jpeg.Options{Quality: 90}), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// parallel calls f with 0..count-1 on all cores.
func parallel(count int, f func(i int)) {
	var next atomic.Int64
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Go(func() {
			for i := int(next.Add(1)) - 1; i < count; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wait.Wait()
}
