package memory_test

import (
	"testing"

	"github.com/sesame-init/sesame/internal/broker/store"
	"github.com/sesame-init/sesame/internal/broker/store/memory"
	"github.com/sesame-init/sesame/lab/storetest"
)

func TestMemoryIsAStore(t *testing.T) {
	storetest.Run(t, func(testing.TB) storetest.Kind {
		first := memory.New()
		return storetest.Kind{
			Open:     func(testing.TB) store.Store { return first.Replica() },
			Volatile: true, Shared: true,
		}
	})
}
