package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// readTimes is what a mount takes to give the tree's bytes.
type readTimes struct {
	large, small, again, random time.Duration
}

// randomReads is how many reads of 4 KiB at random places are timed together.
const randomReads = 8192

// readMount reads the large files from their begin to their end, the small ones, everything again, which the kernel
// has in memory by then, and, after remount, at random places that it has not.
func readMount(dir string, t *tree, remount func() error) (r readTimes, err error) {
	buf := make([]byte, 1<<20)
	timed := func(d *time.Duration, files []file) {
		if err == nil {
			start := time.Now()
			err = readAll(os.DirFS(dir), files, buf)
			*d = time.Since(start)
		}
	}
	timed(&r.large, t.large)
	timed(&r.small, t.small)
	timed(&r.again, t.files())
	if err == nil {
		err = remount()
	}
	if err == nil {
		r.random, err = readRandom(dir, t)
	}
	return r, err
}

func readRandom(dir string, t *tree) (time.Duration, error) {
	var files []*os.File
	for _, l := range t.large {
		f, err := os.Open(filepath.Join(dir, l.path))
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
			return 0, err
		}
		files = append(files, f)
	}
	random := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, nodeSize)
	start := time.Now()
	for range randomReads {
		i := random.IntN(len(files))
		page := random.Int64N(t.large[i].size / nodeSize)
		if _, err := files[i].ReadAt(buf, page*nodeSize); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}
