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
	fmt.Fprintf(w, "%s in %d large and %d small files (%s), %d cores.\n\n",
		mib(b.tree.size), len(b.tree.large), len(b.tree.small), mib(total(b.tree.small)), b.cores)
	row(w, "what", "result", "CPU time per 4 KiB", "bound", "ratio", "ratio of CPU time", "goal", "met")
	fmt.Fprintln(w, "|---|---|---|---|---|---|---|---|")

	all, cores := b.tree.size, fmt.Sprintf("%d cores", b.cores)
	alone := func(name string, size int64, c cost) { row(w, name, rate(size, c), perNode(size, c)) }
	alone("AES-128-GCM, decrypting, one core", all, b.gcm.open)
	alone("AES-128-GCM, decrypting, "+cores, all, b.gcm.openCores)
	alone("AES-128-GCM, decrypting, one core, bytes in its cache", all, b.gcm.openCached)
	alone("AES-128-GCM, encrypting, one core", all, b.gcm.seal)
	alone("AES-128-GCM, encrypting, "+cores, all, b.gcm.sealCores)
	alone("AES-128-GCM, encrypting, one core, bytes in its cache", all, b.gcm.sealCached)
	alone("reading the files, no cipher, one core", all, b.plainRead)
	alone("reading a file and decrypting it with AES-128-GCM, one core", all, b.sealedRead)
	alone("reading a file and decrypting it with AES-128-GCM, "+cores, all, b.sealedCores)
	alone("copying the files, no cipher, one core", all, b.plainCopy)

	compare := func(name string, size int64, c cost, bound string, of cost, goal float64) {
		ratio := of.wall.Seconds() / c.wall.Seconds()
		cells := []string{
			name, rate(size, c), perNode(size, c), rate(size, of) + " " + bound,
			fmt.Sprintf("%.2f", ratio), fmt.Sprintf("%.2f", of.cpu.Seconds()/c.cpu.Seconds()),
		}
		if goal > 0 {
			cells = append(cells, fmt.Sprintf("≥ %.1f", goal), met(ratio >= goal))
		}
		row(w, cells...)
	}
	copyBound := b.gcm.sealCached.plus(b.plainCopy)
	compare("fs.FS, one core", all, b.readFS, "AES-GCM, one core", b.gcm.open, 0.8)
	compare("fs.FS, one core", all, b.readFS, "reading a file + AES-GCM, one core", b.sealedRead, 0)
	compare("fs.FS, "+cores, all, b.readFSCores, "AES-GCM, "+cores, b.gcm.openCores, 0)
	compare("fs.FS, "+cores, all, b.readFSCores, "reading a file + AES-GCM, "+cores, b.sealedCores, 0)
	compare("create, "+cores, all, b.create, "AES-GCM, "+cores, b.gcm.sealCores, 0.6)
	compare("create, "+cores, all, b.create, "copying + AES-GCM in the cache, "+cores, copyBound.shared(b.cores), 0)

	large, small := total(b.tree.large), total(b.tree.small)
	against := func(bound string, of readCosts, goal float64) {
		compare("mount, large files in sequence", large, b.volume.large, bound, of.large, goal)
		compare("mount, small files", small, b.volume.small, bound, of.small, 0)
		compare("mount, everything again", all, b.volume.again, bound, of.again, 0)
		compare("mount, 4 KiB at random", randomReads*nodeSize, b.volume.random, bound, of.random, 0)
	}
	against("FUSE of zeros", b.null, 0.6)
	share := float64(large) / float64(all)
	mountBound := cost{cpu: b.null.large.cpu + time.Duration(share*float64(b.sealedCores.cpu))}
	mountBound.wall = mountBound.cpu
	compare("mount, large files in sequence", large, b.volume.large,
		"FUSE of zeros + reading a file + AES-GCM, "+cores, mountBound.shared(b.cores), 0)
	if b.haveGocryptfs {
		compare("create", all, b.create, "gocryptfs", b.gocryptfsCreate, 0)
		against("gocryptfs", b.gocryptfs, 1)
	} else {
		row(w, "gocryptfs is not installed")
	}
	peak := func(name string, n int64) {
		row(w, name, mib(n), "", "", "", "", "≤ "+mib(peakGoal), met(n <= peakGoal))
	}
	peak("create, peak resident memory", b.createPeak)
	peak("mount, peak resident memory", b.mountPeak)
}

func row(w io.Writer, cells ...string) {
	for len(cells) < 8 {
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

func perNode(size int64, c cost) string {
	return fmt.Sprintf("%.2f µs", c.cpu.Seconds()*1e6/(float64(size)/nodeSize))
}

func mib(n int64) string { return fmt.Sprintf("%.0f MiB", float64(n)/(1<<20)) }

func met(ok bool) string {
	if ok {
		return "yes"
	}
	return "**no**"
}
