package main

import (
	"fmt"
	"io"
)

// peakGoal is the most memory that creating and serving may take.
const peakGoal = 64 << 20

// print writes the results as a Markdown table.
func (b *bench) print(w io.Writer) {
	fmt.Fprintf(w, "%s in %d large and %d small files (%s), %d cores.\n\n",
		mib(b.tree.size), len(b.tree.large), len(b.tree.small), mib(total(b.tree.small)), b.cores)
	row(w, "what", "result", "bound", "ratio", "ratio of CPU time", "goal", "met")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|")

	all, onCores := b.tree.size, fmt.Sprintf(", %d cores", b.cores)
	alone := func(name string, c cost) { row(w, name, rate(all, c)) }
	alone("AES-128-GCM, decrypting, one core", b.gcm.open)
	alone("AES-128-GCM, decrypting"+onCores, b.gcm.openCores)
	alone("AES-128-GCM, encrypting, one core", b.gcm.seal)
	alone("AES-128-GCM, encrypting"+onCores, b.gcm.sealCores)
	alone("reading the files, no cipher", b.plainRead)
	alone("copying the files, no cipher", b.plainCopy)

	compare := func(name string, size int64, c cost, bound string, of cost, goal float64) {
		ratio := of.wall.Seconds() / c.wall.Seconds()
		cells := []string{
			name, rate(size, c), rate(size, of) + " " + bound,
			fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f", of.cpu.Seconds()/c.cpu.Seconds()),
		}
		if goal > 0 {
			cells = append(cells, fmt.Sprintf("≥ %.1f", goal), met(ratio >= goal))
		}
		row(w, cells...)
	}
	compare("fs.FS, one core", all, b.readFS, "AES-GCM", b.gcm.open, 0.8)
	compare("fs.FS, one core", all, b.readFS, "AES-GCM + reading", b.gcm.open.plus(b.plainRead), 0)
	compare("fs.FS"+onCores, all, b.readFSCores, "AES-GCM, one core", b.gcm.open, 0)
	compare("create", all, b.create, "AES-GCM"+onCores, b.gcm.sealCores, 0.6)
	compare("create", all, b.create, "AES-GCM + copying, one core", b.gcm.seal.plus(b.plainCopy), 0)

	large, small := total(b.tree.large), total(b.tree.small)
	against := func(bound string, of readCosts, goal float64) {
		compare("mount, large files in sequence", large, b.volume.large, bound, of.large, goal)
		compare("mount, small files", small, b.volume.small, bound, of.small, 0)
		compare("mount, everything again", all, b.volume.again, bound, of.again, 0)
		compare("mount, 4 KiB at random", randomReads*nodeSize, b.volume.random, bound, of.random, 0)
	}
	against("FUSE of zeros", b.null, 0.6)
	if b.haveGocryptfs {
		compare("create", all, b.create, "gocryptfs", b.gocryptfsCreate, 0)
		against("gocryptfs", b.gocryptfs, 1)
	} else {
		row(w, "gocryptfs is not installed")
	}
	peak := func(name string, n int64) { row(w, name, mib(n), "", "", "", "≤ "+mib(peakGoal), met(n <= peakGoal)) }
	peak("create, peak resident memory", b.createPeak)
	peak("mount, peak resident memory", b.mountPeak)
}

func row(w io.Writer, cells ...string) {
	for len(cells) < 7 {
		cells = append(cells, "")
	}
	for _, c := range cells {
		fmt.Fprintf(w, "| %s ", c)
	}
	fmt.Fprintln(w, "|")
}

func total(files []file) (n int64) {
	for _, f := range files {
		n += f.size
	}
	return n
}

func rate(size int64, c cost) string {
	return fmt.Sprintf("%.0f MB/s", float64(size)/1e6/c.wall.Seconds())
}

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

func met(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
}
