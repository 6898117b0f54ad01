package main

import (
	"fmt"
	"io"
	"time"
)

// peakGoal is the most memory that creating and serving may take.
const peakGoal = 64 << 20

// print writes the results as a Markdown table.
func (b *bench) print(w io.Writer) {
	large, small := total(b.tree.large), total(b.tree.small)
	fmt.Fprintf(w, "%s in %d large and %d small files (%s), %d cores.\n\n",
		mib(b.tree.size), len(b.tree.large), len(b.tree.small), mib(small), b.cores)
	fmt.Fprintln(w, "| what | result | bound | ratio | goal | met |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")

	gcm := func(name string, t time.Duration) { row(w, name, rate(b.tree.size, t)) }
	gcm("AES-128-GCM, decrypting, one core", b.gcm.open)
	gcm(fmt.Sprintf("AES-128-GCM, decrypting, %d cores", b.cores), b.gcm.openCores)
	gcm(fmt.Sprintf("AES-128-GCM, encrypting, %d cores", b.cores), b.gcm.sealCores)

	compare := func(name string, size int64, t time.Duration, bound string, of time.Duration, goal float64) {
		ratio := of.Seconds() / t.Seconds()
		cells := []string{name, rate(size, t), rate(size, of) + " " + bound, fmt.Sprintf("%.2f", ratio)}
		if goal > 0 {
			cells = append(cells, fmt.Sprintf("≥ %.1f", goal), met(ratio >= goal))
		}
		row(w, cells...)
	}
	compare("read through fs.FS, one core", b.tree.size, b.readFS, "AES-GCM", b.gcm.open, 0.8)
	compare(fmt.Sprintf("read through fs.FS, %d cores", b.cores), b.tree.size, b.readFSCores, "AES-GCM", b.gcm.openCores, 0)
	compare("create", b.tree.size, b.create, "AES-GCM", b.gcm.sealCores, 0.6)

	against := func(bound string, of readTimes, goal float64) {
		compare("mount, large files in sequence", large, b.volume.large, bound, of.large, goal)
		compare("mount, small files", small, b.volume.small, bound, of.small, 0)
		compare("mount, everything again", b.tree.size, b.volume.again, bound, of.again, 0)
		compare("mount, 4 KiB at random", randomReads*nodeSize, b.volume.random, bound, of.random, 0)
	}
	against("FUSE of zeros", b.null, 0.6)
	if b.haveGocryptfs {
		compare("create", b.tree.size, b.create, "gocryptfs", b.gocryptfsCreate, 0)
		against("gocryptfs", b.gocryptfs, 1)
	} else {
		row(w, "gocryptfs is not installed")
	}
	row(w, "create, peak resident memory", mib(b.createPeak), "", "", "≤ "+mib(peakGoal), met(b.createPeak <= peakGoal))
	row(w, "mount, peak resident memory", mib(b.mountPeak), "", "", "≤ "+mib(peakGoal), met(b.mountPeak <= peakGoal))
}

func row(w io.Writer, cells ...string) {
	for len(cells) < 6 {
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

func rate(size int64, t time.Duration) string {
	return fmt.Sprintf("%.0f MB/s", float64(size)/1e6/t.Seconds())
}

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

func met(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
}
