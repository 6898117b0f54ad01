package sefs_test

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/fs/sefs/internal/pfs"
)

// benchSize is the content of the benchmarks' volume: half of it in one file, the rest in files of 1 MiB and 16 KiB.
const benchSize = 256 << 20

// benchSource makes the tree that the benchmarks put into a volume.
func benchSource(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	random := rand.NewChaCha8([32]byte{})
	write := func(name string, size int) {
		content := make([]byte, size)
		_, _ = random.Read(content)
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	write("large", benchSize/2)
	for i := range benchSize / 4 >> 20 {
		write(fmt.Sprintf("medium%04d", i), 1<<20)
	}
	for i := range benchSize / 4 >> 14 {
		write(fmt.Sprintf("small%06d", i), 1<<14)
	}
	return dir
}

// gcm seals or opens size bytes in nodes of 4 KiB, each with a fresh key, on some cores, and returns how long it took.
func gcm(size, cores int, use func(aead cipher.AEAD, dst, node []byte)) time.Duration {
	start := time.Now()
	var group sync.WaitGroup
	for range cores {
		group.Go(func() {
			var key [16]byte
			dst, node := make([]byte, 0, pfs.NodeSize+16), make([]byte, pfs.NodeSize+16)
			for i := range size / cores / pfs.NodeSize {
				key[0], key[1], key[2] = byte(i), byte(i>>8), byte(i>>16)
				block, err := aes.NewCipher(key[:])
				if err != nil {
					panic(err)
				}
				aead, err := cipher.NewGCM(block)
				if err != nil {
					panic(err)
				}
				use(aead, dst, node)
			}
		})
	}
	group.Wait()
	return time.Since(start)
}

var benchNonce [12]byte

// seal is what making a volume does to each node at least; open does the same work in the other direction, all of
// it in vain.
func seal(aead cipher.AEAD, dst, node []byte) {
	aead.Seal(dst, benchNonce[:], node[:pfs.NodeSize], nil)
}
func open(aead cipher.AEAD, dst, node []byte) { _, _ = aead.Open(dst, benchNonce[:], node, nil) }

// reportRatio says how fast size bytes went in took, and compares with the plain cipher, measured right now.
func reportRatio(b *testing.B, took time.Duration, cores int, use func(cipher.AEAD, []byte, []byte)) {
	plain := gcm(benchSize, cores, use)
	b.ReportMetric(benchSize/took.Seconds()/1e6, "MB/s")
	b.ReportMetric(benchSize/plain.Seconds()/1e6, "plain-MB/s")
	b.ReportMetric(plain.Seconds()/took.Seconds(), "of-plain")
}

// BenchmarkCreate compares making a volume with AES-128-GCM on all cores.
func BenchmarkCreate(b *testing.B) {
	src := os.DirFS(benchSource(b))
	for _, reproducible := range []bool{false, true} {
		b.Run(fmt.Sprintf("reproducible=%v", reproducible), func(b *testing.B) {
			dir := b.TempDir()
			for i := range b.N {
				dst := filepath.Join(dir, fmt.Sprint(i))
				_, err := sefs.Create(b.Context(), dst, src, sefs.CreateOptions{Key: &sefs.Key{1}, Reproducible: reproducible})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := os.RemoveAll(dst); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			reportRatio(b, b.Elapsed()/time.Duration(b.N), runtime.GOMAXPROCS(0), seal)
		})
	}
}

// BenchmarkRead compares reading a volume through fs.FS with AES-128-GCM on one core.
func BenchmarkRead(b *testing.B) {
	dst := filepath.Join(b.TempDir(), "volume")
	mac, err := sefs.Create(b.Context(), dst, os.DirFS(benchSource(b)), sefs.CreateOptions{Key: &sefs.Key{1}})
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{32 << 10, 128 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("buffer=%dK", size>>10), func(b *testing.B) {
			buf := make([]byte, size)
			for range b.N {
				if err := readVolume(dst, mac, buf); err != nil {
					b.Fatal(err)
				}
			}
			reportRatio(b, b.Elapsed()/time.Duration(b.N), 1, open)
		})
	}
}

func readVolume(dir string, mac sefs.MAC, buf []byte) error {
	v, err := sefs.Open(dir, sefs.OpenOptions{Key: &sefs.Key{1}, MAC: &mac})
	if err != nil {
		return err
	}
	defer v.Close()
	return fs.WalkDir(v, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := v.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for err == nil {
			_, err = f.Read(buf)
		}
		if err == io.EOF {
			return nil
		}
		return err
	})
}
