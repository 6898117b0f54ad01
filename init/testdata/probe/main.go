// Command probe is an application that says what it sees. Tests start it through init.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type sight struct {
	PID, UID, GID int
	Groups        []int
	Env, Args     []string
	Descriptors   map[string]string
	Status        map[string]string // of /proc/self/status
	Core          [2]uint64         // RLIMIT_CORE, soft and hard
	Files         map[string]string // content, or the error
	Owners        map[string]string // mode, user and group of the files
	Mounts        []string          // lines of /proc/self/mountinfo
	Root          []string
	Directory     string
	Writable      []string // of the files that were asked for
}

func main() {
	switch os.Args[1] {
	case "see":
		see(os.Args[2:])
	case "stay": // sees, and lives until a signal ends it
		see(os.Args[2:])
		time.Sleep(time.Hour)
	case "wait": // until SIGTERM; then status 7
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("waiting")
		fmt.Println("got", <-c)
		os.Exit(7)
	case "later": // reads one file, and another one after SIGUSR1
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		_, err := os.ReadFile(os.Args[2])
		fmt.Println("waiting,", err)
		<-c
		for range 1000 { // calls that are under way while the process behind the volume dies end by EIO or ECONNABORTED
			if _, err = os.ReadFile(os.Args[3]); err == nil || errors.Is(err, syscall.ENOTCONN) {
				break
			}
		}
		fmt.Println("later:", err)
	case "stubborn": // does not end by SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("waiting")
		time.Sleep(time.Hour)
	case "orphan": // leaves a child for another process to reap
		cmd := exec.Command("/proc/self/exe", "leave")
		cmd.Stdout = os.Stdout
		if err := cmd.Run(); err != nil {
			fmt.Println(err)
		}
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("waiting")
		<-c
	case "leave":
		cmd := exec.Command("/proc/self/exe", "none")
		_ = cmd.Start()
		fmt.Println("orphan", cmd.Process.Pid)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

func see(files []string) {
	s := sight{PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid(), Env: os.Environ(), Args: os.Args,
		Descriptors: map[string]string{}, Status: map[string]string{}, Files: map[string]string{},
		Owners: map[string]string{}}
	s.Groups, _ = os.Getgroups()
	s.Directory, _ = os.Getwd()
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && !strings.Contains(to, "eventpoll") && !strings.Contains(to, "eventfd") {
			s.Descriptors[filepath.Base(fd)] = to
		}
	}
	status, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":")
		s.Status[name] = strings.TrimSpace(value)
	}
	var core syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_CORE, &core)
	s.Core = [2]uint64{core.Cur, core.Max}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			content = []byte(err.Error())
		}
		s.Files[name] = string(content)
		if info, err := os.Stat(name); err == nil {
			owner := info.Sys().(*syscall.Stat_t)
			s.Owners[name] = fmt.Sprintf("%v %d %d", info.Mode(), owner.Uid, owner.Gid)
		}
		if f, err := os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			_ = f.Close()
			s.Writable = append(s.Writable, name)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	s.Mounts = strings.Split(strings.TrimSpace(string(mounts)), "\n")
	entries, _ := os.ReadDir("/")
	for _, e := range entries {
		s.Root = append(s.Root, e.Name())
	}
	_ = json.NewEncoder(os.Stdout).Encode(s)
}
