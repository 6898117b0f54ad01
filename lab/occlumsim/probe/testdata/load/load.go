// This file is compiled into init, for a test: beside the boot 64 goroutines, half of them on threads of their own,
// allocate, wait for timers, and check that what they hold stays theirs, under a collector that never rests.
package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

func init() {
	debug.SetGCPercent(5)
	for id := range 64 {
		go load(id)
	}
}

func load(id int) {
	if id%2 == 0 {
		runtime.LockOSThread()
	}
	tick := time.NewTicker(4 * time.Millisecond)
	var held [8][]byte
	for round := 0; ; round++ {
		b := make([]byte, 1000+id*500)
		if round%16 == 0 {
			b = make([]byte, 1<<20)
		}
		if n := len(b) - bytes.Count(b, []byte{0}); n > 0 {
			fmt.Fprintf(os.Stderr, "load %d: %d bytes of fresh memory are not zero\n", id, n)
			os.Exit(99)
		}
		for i := range b {
			b[i] = byte(id + 1)
		}
		old := held[round%len(held)]
		if bytes.Count(old, []byte{byte(id + 1)}) != len(old) {
			fmt.Fprintf(os.Stderr, "load %d: its memory was changed\n", id)
			os.Exit(99)
		}
		held[round%len(held)] = b
		if round%64 == 0 {
			debug.FreeOSMemory()
		}
		<-tick.C
	}
}
