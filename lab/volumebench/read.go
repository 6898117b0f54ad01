package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// readCosts is what a mount takes to give the tree's bytes.
type readCosts struct {
	large, small, again, random cost
}

func (r *readCosts) best(m readCosts) {
	r.large.best(m.large)
	r.small.best(m.small)
	r.again.best(m.again)
	r.random.best(m.random)
}

// randomReads is how many reads of 4 KiB at random places are measured together.
const randomReads = 8192

// readMount reads the tree in dir, which start mounts and returns the server of: the large files from their begin to
// their end, the small ones, and everything again, which the kernel has in memory by then; then, mounted anew, at
// random places.
func readMount(dir string, t *tree, start func() (server, error)) (r readCosts, err error) {
	buf := make([]byte, 1<<20)
	err = withServer(start, func(pid int) error {
		for _, m := range []struct {
			cost  *cost
			files []file
		}{{&r.large, t.large}, {&r.small, t.small}, {&r.again, t.files()}} {
			*m.cost, err = measure(pid, func() error { return readAll(os.DirFS(dir), m.files, buf) })
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	err = withServer(start, func(pid int) error {
		r.random, err = readRandom(dir, t, pid)
		return err
	})
	return r, err
}

func readRandom(dir string, t *tree, pid int) (cost, error) {
	var files []*os.File
	for _, l := range t.large {
		f, err := os.Open(filepath.Join(dir, l.path))
		if err != nil {
			return cost{}, err
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
			return cost{}, err
		}
		files = append(files, f)
	}
	random := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, nodeSize)
	return measure(pid, func() error {
		for range randomReads {
			i := random.IntN(len(files))
			page := random.Int64N(t.large[i].size / nodeSize)
			if _, err := files[i].ReadAt(buf, page*nodeSize); err != nil {
				return err
			}
		}
		return nil
	})
}
