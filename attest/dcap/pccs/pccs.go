// Package pccs finds collateral: in a directory ([Dir]), beside the evidence ([Stapled]), or at a provisioning
// certificate caching service (PCCS) or Intel's provisioning certification service (PCS).
//
// Collateral is signed, so a source is trusted to be there, not to be honest: package attest/dcap checks all of
// it.
package pccs

// maxDocument bounds each document. Intel's largest, a PCK CRL, is below 1 MiB.
const maxDocument = 4 << 20
