package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// cost is what something took: on the wall, and of the cores, its own process and the one that serves it together.
// If the machine has other things to do, only the second is to be trusted.
type cost struct{ wall, cpu time.Duration }

// best keeps the lower of each of the two, of which 0 is none.
func (c *cost) best(measured cost) {
	if c.wall == 0 || measured.wall < c.wall {
		c.wall = measured.wall
	}
	if c.cpu == 0 || measured.cpu < c.cpu {
		c.cpu = measured.cpu
	}
}

func (c cost) plus(other cost) cost { return cost{c.wall + other.wall, c.cpu + other.cpu} }

// shared is the cost if the cores shared the work evenly.
func (c cost) shared(cores int) cost { return cost{c.wall / time.Duration(cores), c.cpu} }

// measure returns what f costs this process and, if it is not 0, another one.
func measure(server int, f func() error) (cost, error) {
	wall, cpu := time.Now(), cpuTime(server)
	err := f()
	return cost{time.Since(wall), cpuTime(server) - cpu}, err
}

// cpuTime is what this process and, if it is not 0, another one have used of the cores.
func cpuTime(other int) time.Duration {
	t := readClock(unix.CLOCK_PROCESS_CPUTIME_ID)
	if other != 0 {
		t += readClock(int32(^other<<3 | 2)) // clock_getcpuclockid(3)
	}
	return t
}

func readClock(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
