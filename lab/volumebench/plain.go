package main

import (
	"io/fs"
	"os"
	"sync"
)

// sealedFile is a file of nodes, sealed by AES-128-GCM under a key of its own each, whose keys and tags are in memory:
// the least that has to be read and decrypted to get a tree's bytes. There is nothing of a volume's structure.
type sealedFile struct {
	file *os.File
	keys [][16]byte
	tags [][tagSize]byte
}

// chunk is how many nodes are read at a time.
const chunk = 16

// makeSealedFile makes it of all bytes of the files.
func makeSealedFile(name string, fsys fs.FS, files []file) (s *sealedFile, err error) {
	s = new(sealedFile)
	if s.file, err = os.Create(name); err != nil {
		return nil, err
	}
	g := newGCM(1)
	err = g.batches(fsys, files, func() error {
		buf := make([]byte, 0, g.nodes*nodeSize)
		for i := range g.nodes {
			box := g.sealed[i*boxSize:][:boxSize]
			buf = append(buf, box[:nodeSize]...)
			s.keys = append(s.keys, g.keys[i])
			s.tags = append(s.tags, [tagSize]byte(box[nodeSize:]))
		}
		_, err := s.file.Write(buf)
		return err
	})
	return s, err
}

// read reads and decrypts everything on so many cores.
func (s *sealedFile) read(cores int) error {
	errs := make([]error, cores)
	var all sync.WaitGroup
	for k := range cores {
		all.Go(func() { errs[k] = s.readPart(len(s.keys)*k/cores, len(s.keys)*(k+1)/cores) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *sealedFile) readPart(from, to int) error {
	buf, out := make([]byte, chunk*nodeSize+tagSize), make([]byte, window*nodeSize)
	for first := from; first < to; first += chunk {
		n := min(chunk, to-first)
		if _, err := s.file.ReadAt(buf[:n*nodeSize], int64(first)*nodeSize); err != nil {
			return err
		}
		for i := n - 1; i >= 0; i-- {
			box := buf[i*nodeSize:][:boxSize]
			copy(box[nodeSize:], s.tags[first+i][:])
			dst := out[(first+i)%window*nodeSize:][:0:nodeSize]
			if _, err := newAEAD(&s.keys[first+i]).Open(dst, nonce[:], box, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
