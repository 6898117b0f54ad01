// Package version says which Sesame this is. Version and date come from this file and from nothing else, so that the same
// sources make the same programs, and the same measurements, in a clone, from an archive, and without git. Programs hold no
// revision: a release names the revision of each measurement.
package version

import "time"

// Version is the release that these sources are or, with "-dev", the one that they lead to.
const Version = "0.2.0-dev"

// date is a day in UTC. "make stamp" writes it.
const date = "2026-11-28"

// Date is the day on which the sources were stamped last. It has passed wherever a program of theirs runs, so it is the
// lower bound of every clock that they believe.
func Date() time.Time {
	t, err := time.Parse(time.DateOnly, date)
	if err != nil {
		panic("internal/version: " + err.Error()) // a test reads the constant
	}
	return t
}
