// Package loopback reserves TCP ports for programs that are told their address before they run, because a measured
// config, or their own, names the port.
//
// To choose a free port and to let it go again is not enough: until the program listens, the system may give the port to
// any other one. Here a socket is bound to it and does not listen, so that the system gives it to no other, and a program that asks
// for this very port with SO_REUSEADDR gets it: Go's servers, nginx and redis do.
package loopback

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Reserve reserves a port of 127.0.0.1 until release is called. While it is reserved one program can listen on it, one
// after the other as often as wanted.
func Reserve() (port string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return "", nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", nil, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return "", nil, os.NewSyscallError("getsockname", err)
	}
	return fmt.Sprint(name.(*unix.SockaddrInet4).Port), func() { _ = unix.Close(fd) }, nil
}
