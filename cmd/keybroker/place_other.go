//go:build !ego

package main

// openEGo is of builds for EGo (build tag ego).
var openEGo func() (deviceAttester, error)
