package attack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/sesame-init/sesame/lab/attack/starve"
)

// targetEnv has the number of places of a broker that never gets one back, 0 for the broker as it is.
const targetEnv = "SESAME_ATTACK_TARGET"

// targetProgram starts program as the broker that a crowd attacks: [Victim] serves it.
func targetProgram(program string, fault Fault, places int) *exec.Cmd {
	if fault != Greedy {
		places = 0
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), targetEnv+"="+strconv.Itoa(places))
	cmd.Stderr = os.Stderr
	return cmd
}

// target serves the broker that a crowd attacks.
func target(in io.Reader, out io.Writer, places int) error {
	if places == 0 {
		return starve.ServeTarget(in, out)
	}
	said, say := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- starve.ServeTarget(in, say) }()
	address, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	go greedy(l, strings.TrimSpace(address), places)
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		return err
	}
	return <-ended
}

// greedy takes connections for a broker until its places are used up, all from one pool, and then no more.
func greedy(l net.Listener, broker string, places int) {
	for ; ; places-- {
		in, err := l.Accept()
		if err != nil {
			return
		}
		if places <= 0 {
			_ = in.Close()
			continue
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", broker)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				_, _ = io.Copy(out, in)
				_ = out.Close()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}

// keybrokerTest is what kills the real program, and the line that it prints for attackers.
const keybrokerTest = "TestKilledAHundredTimesItReleasesNothingWithoutItsEntry"

// KillProgram kills the program keybroker under load, over its network and with its witness, again and again: the test of
// its package does, whose binary is tests and whose working folder is dir. [Forgetful] is a program whose store was put
// back while it was down, without a witness.
func KillProgram(tests, dir string, kills int, fault Fault) (f Figures, err error) {
	cmd := exec.Command(tests, "-test.run", "^"+keybrokerTest+"$")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SESAME_ATTACK_KILLS="+strconv.Itoa(kills), faultEnv+"="+string(fault))
	text, err := cmd.CombinedOutput()
	_, line, found := bytes.Cut(text, []byte("attack: "))
	if !found {
		return f, errors.Join(err, fmt.Errorf("the test of keybroker says %.2000s", text))
	}
	if _, err := fmt.Sscanf(string(line), "killed %d served %d unlogged %d\n", &f.Tried, &f.Served, &f.Unlogged); err != nil {
		return f, err
	}
	if fault != None {
		err = nil // the test has failed, as it should
	}
	f.Refused = f.Tried
	return f, err
}
