package pccs_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/dcap/pccs"
	"github.com/sesame-init/sesame/lab/attack/hostile"
	"github.com/sesame-init/sesame/lab/softsgx"
)

// serveRaw answers each connection of loopback with what attack writes once a request has come.
func serveRaw(t *testing.T, attack func(net.Conn) error) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { _ = c.Close() })()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_ = attack(c)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		running.Wait()
	})
	return "http://" + l.Addr().String()
}

// endless writes a beginning, and then a part again and again.
func endless(beginning, part string) func(net.Conn) error {
	return func(c net.Conn) error {
		_, err := io.WriteString(c, beginning)
		for err == nil {
			_, err = io.WriteString(c, part)
		}
		return err
	}
}

func TestAHostileServiceCostsABoundedFetch(t *testing.T) {
	const forged = "gone\x1b[2K level=info\u2028\u202e"
	most := uint64(24 << 20) // of heap: a document has 4 MiB, the garbage of reading it included
	for name, c := range map[string]struct {
		attack func(net.Conn) error
		code   attest.Code
	}{
		"endless headers":  {endless("HTTP/1.1 200 OK\r\n", "X: "+strings.Repeat("h", 4<<10)+"\r\n"), attest.CodeUnreachable},
		"one long header":  {endless("HTTP/1.1 200 OK\r\nX: ", strings.Repeat("h", 4<<10)), attest.CodeUnreachable},
		"a long status":    {endless("HTTP/1.1 200 ", strings.Repeat("s", 4<<10)), attest.CodeUnreachable},
		"endless 103":      {endless("", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"), attest.CodeUnreachable},
		"an endless body":  {endless("HTTP/1.1 200 OK\r\n\r\n", strings.Repeat("b", 16<<10)), attest.CodeCollateral},
		"endless chunks":   {endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1000\r\n"+strings.Repeat("c", 0x1000)+"\r\n"), attest.CodeCollateral},
		"endless trailers": {endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: "+strings.Repeat("t", 4<<10)+"\r\n"), attest.CodeUnreachable},
		"one endless chunk": {endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1"),
			attest.CodeUnreachable},
		"a length that is not there": {func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n{")
			return err
		}, attest.CodeUnreachable},
		"silence": {func(c net.Conn) error { _, err := io.Copy(io.Discard, c); return err }, attest.CodeUnreachable},
		"a reset": {func(c net.Conn) error {
			_ = c.(*net.TCPConn).SetLinger(0)
			return c.Close()
		}, attest.CodeUnreachable},
		"a refusal that forges": {func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 "+forged+"\r\n\r\n")
			return err
		}, attest.CodeUnreachable},
		"a redirect to itself": {func(c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 302 "+forged+"\r\nLocation: /"+strings.Repeat("r", 1<<10)+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			return err
		}, attest.CodeUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := 30 * time.Second
			if name == "silence" {
				timeout = 100 * time.Millisecond
			}
			platform := newService(t, softsgx.Options{})
			client := newClient(t, pccs.Config{
				URL: serveRaw(t, c.attack), AllowHTTP: true, Roots: platform.roots(), Now: platform.clock.Now, Wait: platform.clock.wait,
				Timeout: timeout, Attempts: 2,
			})
			growth := hostile.Heap()
			_, err := client.Collateral(t.Context(), platformRequest)
			grown := growth()
			wantCode(t, err, c.code)
			if grown > most {
				t.Errorf("the heap has grown by %d KiB", grown>>10)
			}
			if text := err.Error(); len(text) > 2<<10 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("the service wrote into the log: %.300q", text)
			}
			t.Logf("heap %d KiB; %.300v", grown>>10, err)
		})
	}
}

func TestAHugeCertificateOfTheServiceIsNotRead(t *testing.T) {
	b, err := hostile.Start(hostile.Named("a certificate beyond bounds"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	s := newService(t, softsgx.Options{})
	client := newClient(t, pccs.Config{URL: "https://" + b.Address, Roots: s.roots(), Now: s.clock.Now, Wait: s.clock.wait})
	_, err = client.Collateral(t.Context(), platformRequest)
	wantCode(t, err, attest.CodeUnreachable)
	if err != nil && !strings.Contains(err.Error(), "exceeds maximum") {
		t.Error(err)
	}
}
