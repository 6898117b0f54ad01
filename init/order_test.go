package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-tpm/legacy/tpm2"
)

// events are what happened, in their order.
type events struct {
	mu  sync.Mutex
	all []string
}

func (e *events) add(event string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, event)
}

// relay passes each connection to l on to another address, by a function that returns when it is over.
func relay(t *testing.T, l net.Listener, network, address string, pass func(from, to net.Conn)) {
	t.Helper()
	var open sync.WaitGroup
	open.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer from.Close()
				to, err := net.Dial(network, address)
				if err != nil {
					t.Error(err)
					return
				}
				defer to.Close()
				pass(from, to)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		open.Wait()
	})
}

// message reads a command or an answer of a TPM: a tag in 2 bytes, its size in 4, a code in 4.
func message(from io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(from, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 4096 {
		return nil, fmt.Errorf("a message of %d bytes", size)
	}
	all := append(head, make([]byte, size-10)...)
	_, err := io.ReadFull(from, all[10:])
	return all, err
}

// TestTheTPMsKeysAreMadeBeforeTheBrokerIsAsked: a chip takes up to half a minute for one, and no broker waits for it.
func TestTheTPMsKeysAreMadeBeforeTheBrokerIsAsked(t *testing.T) {
	b := newLinuxBoot(t, "see")
	var seen events
	const made, connected = "a key was made", "the broker is connected to"

	chip, err := net.Listen("unix", filepath.Join(b.dir, "tpm.sock"))
	if err != nil {
		t.Fatal(err)
	}
	relay(t, chip, "unix", b.socket, func(from, to net.Conn) {
		for {
			command, err := message(from)
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				return
			}
			_, err = to.Write(command)
			var answer []byte
			if err == nil {
				answer, err = message(to)
			}
			if err == nil && binary.BigEndian.Uint32(command[6:]) == uint32(tpm2.CmdCreatePrimary) &&
				binary.BigEndian.Uint32(answer[6:]) == 0 {
				seen.add(made)
			}
			if err == nil {
				_, err = from.Write(answer)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	servers := b.config["grpc_ratls"].(map[string]any)
	relay(t, front, "tcp", servers["servers"].([]string)[0], func(from, to net.Conn) {
		seen.add(connected)
		go func() {
			_, _ = io.Copy(to, from)
			_ = to.(*net.TCPConn).CloseWrite()
		}()
		_, _ = io.Copy(from, to)
	})
	servers["servers"] = []string{front.Addr().String()}
	b.config["tpm"].(map[string]any)["device"] = chip.Addr().String()

	r := b.start()
	if status := r.status(); status != 0 {
		t.Fatalf("status %d:\n%s", status, r.out)
	}
	seen.mu.Lock()
	defer seen.mu.Unlock()
	first := slices.Index(seen.all, connected)
	if first < 1 || slices.Contains(seen.all[first:], made) {
		t.Errorf("the order is %q", seen.all)
	}
}
