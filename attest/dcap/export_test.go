package dcap

// ForgetQEReports empties that one memory, as if the next quote had another QE report.
func ForgetQEReports(v *Verifier) {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.qeReports)
}
