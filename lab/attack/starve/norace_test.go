//go:build !race

package starve_test

const raced = 1
