// Package hostile has brokers that attack the client which connects to them, before they have proved anything: each is a
// way to waste its time or memory, to speak through its log, or to end its boot. They listen on loopback, speak HTTP/2 with
// TLS 1.3 or without, and show no evidence.
package hostile

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sesame-init/sesame/attest/session"
	"github.com/sesame-init/sesame/internal/pki"
)

// Forged is what a hostile broker says if it can say something: it ends a line of a log and begins another one.
const Forged = "gone\x1b[2K\r\nlevel=info msg=\"secret released\"\u2028\u202e"

// A Kind is a way to be hostile. The function has the connection after the handshake, and ends when it fails.
type Kind struct {
	Name   string
	attack func(context.Context, net.Conn) error
	weight int // bytes by which its certificate is larger than it needs to be
}

// Kinds are all ways.
func Kinds() []Kind {
	return []Kind{
		{Name: "silent", attack: silent},
		{Name: "a huge certificate", attack: onRequest(status("7", Forged)), weight: 200 << 10},
		{Name: "a certificate beyond bounds", attack: silent, weight: 1 << 20},
		{Name: "a reset", attack: reset},
		{Name: "one byte a second", attack: slow},
		{Name: "endless CONTINUATION frames", attack: onRequest(continuation)},
		{Name: "empty CONTINUATION frames", attack: onRequest(emptyContinuation)},
		{Name: "endless headers", attack: onRequest(headers)},
		{Name: "huge trailers", attack: onRequest(status("14", Forged, hpack.HeaderField{Name: "x", Value: strings.Repeat("t", 256<<10)}))},
		{Name: "refusing", attack: onRequest(status("7", Forged))},
		{Name: "no such secret", attack: onRequest(status("5", Forged))},
		{Name: "not implemented", attack: onRequest(status("12", Forged))},
		{Name: "lacking collateral", attack: onRequest(status("14", Forged, hpack.HeaderField{Name: "grpc-status-details-bin", Value: "AAAA"}))},
		{Name: "pushback of 2^31 ms", attack: onRequest(status("8", Forged, hpack.HeaderField{Name: "grpc-retry-pushback-ms", Value: "2147483648"}))},
		{Name: "pushback without an end", attack: onRequest(status("8", Forged, hpack.HeaderField{Name: "grpc-retry-pushback-ms", Value: "99999999999999999999"}))},
		{Name: "RST_STREAM", attack: onRequest(func(f *http2.Framer, stream uint32) error { return f.WriteRSTStream(stream, http2.ErrCodeCancel) })},
		{Name: "GOAWAY", attack: onRequest(func(f *http2.Framer, _ uint32) error {
			return f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte(strings.Repeat(Forged, 400)))
		})},
		{Name: "SETTINGS", attack: onRequest(func(f *http2.Framer, _ uint32) error {
			return forever(func() error { return f.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1}) })
		})},
		{Name: "PING", attack: onRequest(func(f *http2.Framer, _ uint32) error {
			return forever(func() error { return f.WritePing(false, [8]byte{}) })
		})},
		{Name: "a message that is too large", attack: onRequest(large)},
		{Name: "gzip", attack: onRequest(gzip)},
		{Name: "an alert", attack: alert},
		{Name: "no HTTP/2", attack: func(_ context.Context, c net.Conn) error {
			_, err := io.WriteString(c, "HTTP/1.1 200 "+Forged+"\r\n\r\n")
			return err
		}},
	}
}

// Named is the kind of a name. It panics if there is none.
func Named(name string) Kind {
	for _, k := range Kinds() {
		if k.Name == name {
			return k
		}
	}
	panic("no hostile broker is called " + name)
}

// A Broker is a hostile one that listens.
type Broker struct {
	Address string // host:port on loopback

	listener net.Listener
	cancel   context.CancelFunc
	running  sync.WaitGroup
}

// Start lets a broker of a kind listen on a free port, with TLS.
func Start(k Kind) (*Broker, error) {
	certificate, err := session.NewKey(time.Now())
	if err == nil && k.weight > 0 {
		template := *certificate.Leaf
		template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, k.weight)}}
		key := certificate.PrivateKey.(*ecdsa.PrivateKey)
		certificate, err = pki.SelfSign(rand.Reader, &template, key)
	}
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return start(k, &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert})
}

// StartPlain is [Start] without TLS.
func StartPlain(k Kind) (*Broker, error) { return start(k, nil) }

func start(k Kind, config *tls.Config) (*Broker, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Broker{Address: listener.Addr().String(), listener: listener, cancel: cancel}
	b.running.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			b.running.Go(func() {
				defer raw.Close()
				defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
				if config == nil {
					_ = k.attack(ctx, raw)
					return
				}
				conn := tls.Server(raw, config)
				if conn.HandshakeContext(ctx) == nil {
					_ = k.attack(ctx, conn)
				}
			})
		}
	})
	return b, nil
}

// Stop ends the broker with all its connections, and waits for that.
func (b *Broker) Stop() {
	b.cancel()
	_ = b.listener.Close()
	b.running.Wait()
}

func silent(_ context.Context, c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	return err
}

// slow sends the beginning of a frame that never ends.
func slow(ctx context.Context, c net.Conn) error {
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		return err
	}
	frame := append([]byte{0, 0x40, 0, byte(http2.FrameData), 0, 0, 0, 0, 1}, make([]byte, 0x4000)...)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := range frame {
		if _, err := c.Write(frame[i : i+1]); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func alert(_ context.Context, c net.Conn) error {
	// A record of type alert that is not encrypted, as anyone on the way can send it.
	_, err := below(c).Write([]byte{21, 3, 3, 0, 2, 2, 42})
	return err
}

func reset(_ context.Context, c net.Conn) error {
	tcp := below(c).(*net.TCPConn)
	if err := tcp.SetLinger(0); err != nil {
		return err
	}
	return tcp.Close()
}

// below is a connection without its TLS.
func below(c net.Conn) net.Conn {
	if over, ok := c.(*tls.Conn); ok {
		return over.NetConn()
	}
	return c
}

// onRequest waits for the client's request and answers it. Afterwards it reads on until the client leaves.
func onRequest(answer func(f *http2.Framer, stream uint32) error) func(context.Context, net.Conn) error {
	return func(_ context.Context, c net.Conn) error {
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return err
		}
		f := http2.NewFramer(c, c)
		if err := f.WriteSettings(); err != nil {
			return err
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return err
			}
			if _, ok := frame.(*http2.HeadersFrame); !ok {
				continue
			}
			go func() { _, _ = io.Copy(io.Discard, c) }() // ends with the connection
			if err := answer(f, frame.Header().StreamID); err != nil {
				return err
			}
			return silent(context.Background(), c)
		}
	}
}

func forever(do func() error) error {
	for {
		if err := do(); err != nil {
			return err
		}
	}
}

func encode(fields ...hpack.HeaderField) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for _, field := range fields {
		_ = e.WriteField(field) // to memory
	}
	return b.Bytes()
}

func begin() []hpack.HeaderField {
	return []hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}
}

// block writes headers, in as many frames as they need.
func block(f *http2.Framer, stream uint32, fields []byte, end bool) error {
	const most = 16 << 10
	first := fields[:min(most, len(fields))]
	fields = fields[len(first):]
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(fields) == 0})
	for err == nil && len(fields) > 0 {
		next := fields[:min(most, len(fields))]
		fields = fields[len(next):]
		err = f.WriteContinuation(stream, len(fields) == 0, next)
	}
	return err
}

func status(code, message string, fields ...hpack.HeaderField) func(*http2.Framer, uint32) error {
	var escaped strings.Builder
	for _, b := range []byte(message) {
		fmt.Fprintf(&escaped, "%%%02X", b) // as gRPC writes what is not printable
	}
	all := append(begin(), hpack.HeaderField{Name: "grpc-status", Value: code}, hpack.HeaderField{Name: "grpc-message", Value: escaped.String()})
	return func(f *http2.Framer, stream uint32) error {
		return block(f, stream, encode(append(all, fields...)...), true)
	}
}

func continuation(f *http2.Framer, stream uint32) error {
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: encode(begin()...)}); err != nil {
		return err
	}
	i := 0
	return forever(func() error {
		i++
		return f.WriteContinuation(stream, false, encode(hpack.HeaderField{Name: fmt.Sprint("x-", i), Value: strings.Repeat("c", 15<<10), Sensitive: true}))
	})
}

func emptyContinuation(f *http2.Framer, stream uint32) error {
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: encode(begin()...)}); err != nil {
		return err
	}
	return forever(func() error { return f.WriteContinuation(stream, false, nil) })
}

// headers sends blocks that are complete, one after the other.
func headers(f *http2.Framer, stream uint32) error {
	fields := encode(append(begin(), hpack.HeaderField{Name: "x", Value: strings.Repeat("h", 1<<20), Sensitive: true})...)
	return forever(func() error { return block(f, stream, fields, false) })
}

func large(f *http2.Framer, stream uint32) error {
	if err := block(f, stream, encode(begin()...), false); err != nil {
		return err
	}
	message := binary.BigEndian.AppendUint32([]byte{0}, 1<<31-1)
	if err := f.WriteData(stream, false, message); err != nil {
		return err
	}
	return forever(func() error { return f.WriteData(stream, false, make([]byte, 16<<10)) }) // beyond the window, too
}

func gzip(f *http2.Framer, stream uint32) error {
	if err := block(f, stream, encode(append(begin(), hpack.HeaderField{Name: "grpc-encoding", Value: "gzip"})...), false); err != nil {
		return err
	}
	return f.WriteData(stream, true, []byte{1, 0, 0, 0, 4, 0x1f, 0x8b, 8, 0})
}
