package keystore_test

import (
	"crypto/rand"
	"path/filepath"
	"testing"

	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
)

// BenchmarkRelease is a recorded release on the embedded store, its commit included, one at a time and many at once.
func BenchmarkRelease(b *testing.B) {
	for name, workers := range map[string]int{"alone": 1, "64 at once": 64} {
		b.Run(name, func(b *testing.B) {
			s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "broker.db"), privatefile.Rule{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			k := open(b, s, func(o *keystore.Options) { o.Root = &rootkey.Process{} })
			put(b, k, "known", "value")
			b.SetParallelism(workers)
			one := func() {
				d := decision(0, "known")
				_, _ = rand.Read(d.Binder[:])
				if _, _, err := k.Release(b.Context(), d); err != nil {
					b.Error(err)
				}
			}
			b.ResetTimer()
			if workers == 1 {
				for range b.N {
					one()
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					one()
				}
			})
		})
	}
}
