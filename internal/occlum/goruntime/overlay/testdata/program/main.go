// Command program uses what a runtime must get right on threads and memory that the LibOS hands out: many threads,
// TLS, DNS, timers, signals, the collector and a heap that grows and shrinks. It prints "done".
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

func main() {
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"threads", threads}, {"heap", heap}, {"timers", timers}, {"signals", signals}, {"DNS", names},
		{"TLS", exchange}, {"collector", pressure}, {"heap after all that", heap},
	} {
		if err := step.run(); err != nil {
			fmt.Printf("%s: %v\n", step.name, err)
			os.Exit(1)
		}
	}
	fmt.Println("done")
}

// threads has 64 goroutines of which each owns a thread.
func threads() error {
	var all, group sync.WaitGroup
	all.Add(64)
	for range 64 {
		group.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		})
	}
	group.Wait()
	return nil
}

// heap wants fresh memory to be clear, also if it was used and given back before.
func heap() error {
	for round := range 20 {
		b := make([]byte, 8<<20)
		if n := len(b) - bytes.Count(b, []byte{0}); n > 0 {
			return fmt.Errorf("round %d: %d bytes of fresh memory are not zero", round, n)
		}
		for i := range b {
			b[i] = 0xa5
		}
		b = nil
		debug.FreeOSMemory()
	}
	return nil
}

func timers() error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 5 {
		<-tick.C
	}
	<-ctx.Done()
	return nil
}

func signals() error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	defer signal.Stop(c)
	if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
		return err
	}
	<-c
	return nil
}

// names asks a name server of its own, whose one answer is 127.0.0.1.
func names() error {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		const header, fixed = 12, 4 // a question ends with its type and class
		query := make([]byte, 512)
		for {
			n, from, err := server.ReadFrom(query)
			if err != nil {
				return
			}
			end := header + bytes.IndexByte(query[header:n], 0) + 1 + fixed
			answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[header:end]...)
			if query[end-3] == 1 { // type A
				answer[7] = 1
				answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
			}
			if _, err := server.WriteTo(answer, from); err != nil {
				return
			}
		}
	}()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
	addrs, err := resolver.LookupHost(context.Background(), "broker.example.")
	if err != nil || len(addrs) != 1 || addrs[0] != "127.0.0.1" {
		return fmt.Errorf("looking up a name gave %v, %w", addrs, err)
	}
	return nil
}

// pressure keeps the collector at work under 64 goroutines, each of which checks that what it holds stays its own.
func pressure() error {
	defer debug.SetGCPercent(debug.SetGCPercent(5))
	failures := make(chan error, 64)
	for id := range cap(failures) {
		go func() {
			var held [16][]byte
			for round := range 200 {
				b := make([]byte, 64+round*37)
				if n := len(b) - bytes.Count(b, []byte{0}); n > 0 {
					failures <- fmt.Errorf("goroutine %d: %d bytes of fresh memory are not zero", id, n)
					return
				}
				for i := range b {
					b[i] = byte(id)
				}
				if old := held[round%len(held)]; bytes.Count(old, []byte{byte(id)}) != len(old) {
					failures <- fmt.Errorf("goroutine %d: its memory was changed", id)
					return
				}
				held[round%len(held)] = b
			}
			failures <- nil
		}()
	}
	for range cap(failures) {
		if err := <-failures; err != nil {
			return err
		}
	}
	return nil
}

// exchange sends a megabyte over TLS to itself and back.
func exchange() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "program"},
		DNSNames: []string{"program"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)

	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = io.Copy(conn, io.LimitReader(conn, 1<<20))
			conn.Close()
		}
		served <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "program"})
	if err != nil {
		return err
	}
	defer conn.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, 1<<20))
		sent <- err
	}()
	n, err := io.Copy(io.Discard, conn)
	if err != nil || n != 1<<20 {
		return fmt.Errorf("%d bytes came back, %w", n, err)
	}
	if err := <-sent; err != nil {
		return err
	}
	return <-served
}
