package tpm

import "github.com/sesame-init/sesame/attest"

// Evidence is the encoded form, for tests that change it.
type Evidence = evidence

// Change decodes evidence, changes it and encodes it again.
func Change(e attest.Evidence, change func(*Evidence)) (attest.Evidence, error) {
	decoded, err := unmarshal(e.Raw)
	if err != nil {
		return e, err
	}
	change(decoded)
	raw, err := encoding.Marshal(decoded)
	return attest.Evidence{Type: e.Type, Raw: raw}, err
}

// Compress packs a firmware log.
var Compress = compress

// Kept is how many keys a device has prepared.
func Kept(d *Device) int { return len(d.kept) }
