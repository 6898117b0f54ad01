// Command probe is a program of the LibOS for tests: as init, as an application, and as a check of what the
// simulator does to a Go runtime. Its first argument, or in /bin/init the first word of /etc/probe, says what to do.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

func main() {
	words := os.Args[1:]
	if os.Args[0] == "init" {
		text, err := os.ReadFile("/etc/probe")
		if err != nil {
			fail(err)
		}
		words = strings.Fields(string(text))
	}
	for _, command := range strings.Split(strings.Join(words, " "), ";") {
		if err := run(strings.Fields(command)); err != nil {
			fail(fmt.Errorf("%s: %w", command, err))
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "probe: "+err.Error())
	os.Exit(3)
}

func run(words []string) error {
	switch words[0] {
	case "exit": // STATUS
		status, err := strconv.Atoi(words[1])
		if err != nil {
			return err
		}
		os.Exit(status)
	case "root": // KEY|- WANT-ERRNO [NAME=VALUE of environment]...
		return mountRoot(words[1], words[2], words[3:])
	case "mount": // TYPE TARGET OPTIONS|- WANT-ERRNO
		options := words[3]
		if options == "-" {
			options = ""
		}
		return want(words[4], unix.Mount("x", words[2], words[1], 0, options))
	case "umount": // TARGET WANT-ERRNO
		return want(words[2], unix.Unmount(words[1], 0))
	case "cat": // FILE
		text, err := os.ReadFile(words[1])
		_, _ = os.Stdout.Write(text)
		return err
	case "write": // FILE TEXT
		return os.WriteFile(words[1], []byte(words[2]+"\n"), 0o600)
	case "ls": // DIR
		entries, err := os.ReadDir(words[1])
		for _, e := range entries {
			fmt.Println(e.Name())
		}
		return err
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
	case "args":
		fmt.Printf("%q\n", words[1:])
	case "pid":
		fmt.Println(os.Getpid())
	case "target": // own measurement
		return target()
	case "quote": // of report data that begins and ends with 7
		return quote()
	case "threads":
		return threads()
	case "heap":
		return heap()
	case "mapping": // FILE copy|shared
		return mapping(words[1], words[2])
	case "wait": // for a signal, and exit with its number
		return wait()
	default:
		return errors.New("unknown command")
	}
	return nil
}

func want(errno string, err error) error {
	got := "0"
	var e unix.Errno
	if errors.As(err, &e) {
		got = unix.ErrnoName(e)
	}
	if got != errno {
		return fmt.Errorf("got %s, want %s", got, errno)
	}
	return nil
}

func mountRoot(key, errno string, env []string) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	var keyPointer unsafe.Pointer
	if key != "-" {
		raw, err := hex.DecodeString(strings.ReplaceAll(key, "-", ""))
		if err != nil {
			return err
		}
		pin.Pin(&raw[0])
		keyPointer = unsafe.Pointer(&raw[0])
	}
	var config *[7]uintptr
	if len(env) > 0 {
		list := []*byte{}
		for _, e := range env {
			b, err := unix.BytePtrFromString(e)
			if err != nil {
				return err
			}
			pin.Pin(b)
			list = append(list, b)
		}
		list = append(list, nil)
		pin.Pin(&list[0])
		config = &[7]uintptr{0: 56, 6: uintptr(unsafe.Pointer(&list[0]))}
	}
	_, _, e := unix.Syscall(363, uintptr(keyPointer), uintptr(unsafe.Pointer(config)), 0)
	if e == 0 {
		return want(errno, nil)
	}
	return want(errno, e)
}

func target() error {
	f, err := os.Open("/dev/sgx")
	if err != nil {
		return err
	}
	defer f.Close()
	var info [512]byte
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x82007303, uintptr(unsafe.Pointer(&info[0]))); e != 0 {
		return e
	}
	fmt.Println(hex.EncodeToString(info[:32]))
	return nil
}

func quote() error {
	device, err := sgx.OpenDevice("/dev/sgx")
	if err != nil {
		return err
	}
	defer device.Close()
	evidence, err := device.Evidence(context.Background(), attest.ReportData{0: 7, 63: 7})
	fmt.Println(hex.EncodeToString(evidence.Raw))
	return err
}

// threads keeps 64 goroutines on threads of their own, all at a time, busy with channels, timers of the network poller and
// a socket.
func threads() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			c.Close()
		}
	}()
	var all, there sync.WaitGroup
	there.Add(64)
	failures := make(chan error, 64)
	for range 64 {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			there.Done()
			there.Wait()
			c, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				failures <- err
				return
			}
			defer c.Close()
			b := make([]byte, 5)
			if _, err := c.Read(b); err != nil || string(b) != "hello" {
				failures <- fmt.Errorf("read %q: %w", b, err)
			}
		})
	}
	all.Wait()
	close(failures)
	return <-failures
}

// heap frees and takes memory that has been given back, and finds fresh memory that is not zero.
func heap() error {
	const size = 8 << 20
	zero := make([]byte, size)
	for round := range 20 {
		b := make([]byte, size)
		if !bytes.Equal(b, zero) {
			return fmt.Errorf("round %d: fresh memory is not zero", round)
		}
		for i := range b {
			b[i] = 0xAA
		}
		runtime.KeepAlive(b)
		b = nil
		debug.FreeOSMemory()
	}
	return nil
}

// mapping says whether a shared mapping of a file is one, or the LibOS's copy.
func mapping(name, kind string) error {
	if err := os.WriteFile(name, []byte("old text in file"), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	check := func(when, shared, copied string) {
		b := make([]byte, 16)
		if _, err = f.ReadAt(b, 0); err != nil {
			return
		}
		text := string(b[:3]) + "/" + string(m[:3])
		if want := map[string]string{"shared": shared, "copy": copied}[kind]; text != want {
			err = fmt.Errorf("%s: file and mapping are %s, want %s", when, text, want)
		}
	}
	for _, step := range []struct {
		when           string
		do             func() error
		shared, copied string
	}{
		{"mapped", func() error { return nil }, "old/old", "old/old"},
		{"changed in memory", func() error { copy(m, "mem"); return nil }, "mem/mem", "old/mem"},
		{"msync", func() error { return unix.Msync(m, unix.MS_SYNC) }, "mem/mem", "mem/mem"},
		{"changed in the file", func() error { _, err := f.WriteAt([]byte("fil"), 0); return err }, "fil/fil", "fil/mem"},
		{"fsync", f.Sync, "fil/fil", "mem/mem"},
		{"changed again", func() error { copy(m, "new"); return nil }, "new/new", "mem/new"},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.when, err)
		}
		if check(step.when, step.shared, step.copied); err != nil {
			return err
		}
	}
	if err := unix.Munmap(m); err != nil {
		return err
	}
	text, err := os.ReadFile(name)
	if err == nil && string(text) != "new text in file" {
		err = fmt.Errorf("after munmap the file holds %q", text)
	}
	return err
}

func wait() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1)
	fmt.Println("ready")
	s := <-signals
	os.Exit(int(s.(unix.Signal)))
	return nil
}
