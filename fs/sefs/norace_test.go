//go:build !race

package sefs_test

const raceEnabled = false
