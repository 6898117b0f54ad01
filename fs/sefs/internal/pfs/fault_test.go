package pfs

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"testing"
)

// breaking panics at the n-th access.
type breaking struct {
	memory
	left atomic.Int32
}

func (b *breaking) ReadAt(p []byte, off int64) (int, error) {
	b.count()
	return b.memory.ReadAt(p, off)
}

func (b *breaking) WriteAt(p []byte, off int64) (int, error) {
	b.count()
	return b.memory.WriteAt(p, off)
}

func (b *breaking) count() {
	if b.left.Add(-1) == 0 {
		panic("it broke")
	}
}

// TestAPanicInTheBackgroundIsTheCallers: the caller can recover it, and others can go on with the same reader
// and writer, whose buffers are few.
func TestAPanicInTheBackgroundIsTheCallers(t *testing.T) {
	content := random(3072 + 34*96*4096 + 12345)
	codec := NewCodec(Layout031, &testKey)
	stored := write(t, codec, WriterOptions{}, "name", content)
	caught := func(f func() error) (cause any) {
		defer func() { cause = recover() }()
		if err := f(); err != nil {
			t.Error(err)
		}
		return nil
	}
	reader := NewReader(codec, 2)
	writer, err := NewWriter(codec, WriterOptions{Rand: rand.Reader, Buffers: 2})
	if err != nil {
		t.Fatal(err)
	}
	panics := [2]int{}
	for n := int32(1); n < 60; n += 3 {
		source := &breaking{memory: memory{b: stored}}
		f, err := reader.Open(source, int64(len(stored)), "name")
		if err != nil {
			t.Fatal(err)
		}
		source.left.Store(n)
		target := &breaking{}
		target.left.Store(n)
		for i, cause := range []any{
			caught(func() error { _, err := f.ReadAt(make([]byte, 1<<20), 3072); return err }),
			caught(func() error {
				_, _, err := writer.Write(t.Context(), target, "name", bytes.NewReader(content))
				return err
			}),
		} {
			if cause != nil {
				panics[i]++
				if text := fmt.Sprint(cause); !bytes.Contains([]byte(text), []byte("it broke")) {
					t.Errorf("the panic is %v", cause)
				}
			}
		}
	}
	if panics[0] < 3 || panics[1] < 10 {
		t.Errorf("%d reads and %d writes broke", panics[0], panics[1])
	}
	if got, err := read(codec, stored, "name"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("afterwards: %v", err)
	}
}
