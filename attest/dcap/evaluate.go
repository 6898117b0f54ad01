package dcap

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/sgx"
)

// evaluate finds the TCB levels of platform, quoting enclave and TDX module, and converges their statuses.
func (e *Endorsements) evaluate(p *platform, q *sgx.Quote, module *tdxModule) (attest.TCB, error) {
	qe := isvLevel(e.qe.levels, q.QEReport.SVN)
	if qe == nil {
		return attest.TCB{}, notGenuine(StepTCBLevel, "", "the quoting enclave's ISVSVN %d is below every known level", q.QEReport.SVN)
	}
	var svn *[16]byte
	if q.TDX != nil {
		svn = &q.TDX.TCBSVN
	}
	launch, err := e.levels(p, svn, module, qe)
	if err != nil {
		return attest.TCB{}, notGenuine(StepTCBLevel, "", "%w", err)
	}
	tcb := attest.TCB{Status: launch.status(), EvaluationNumber: e.EvaluationNumber()}
	for _, l := range launch {
		if l == nil {
			continue
		}
		if tcb.Date.IsZero() || l.date.Before(tcb.Date) {
			tcb.Date = l.date
		}
		tcb.Advisories = append(tcb.Advisories, l.advisories...)
	}
	slices.Sort(tcb.Advisories)
	tcb.Advisories = slices.Compact(tcb.Advisories)

	outOfDate := tcb.Status == tcbstatus.OutOfDate || tcb.Status == tcbstatus.OutOfDateConfigurationNeeded
	if q.BodyType == sgx.BodyTD15 && outOfDate {
		if status, ok := e.current(p, q.TDX, qe); ok {
			tcb.Status, tcb.RelaunchAdvised = status, true
		}
	}
	return tcb, nil
}

// current judges the TDX module that runs now, if it was updated since the trust domain was started: with a
// current module in force, the trust domain only needs to be started again.
func (e *Endorsements) current(p *platform, t *sgx.TDXBody, qe *level) (tcbstatus.Status, bool) {
	module, err := e.tdxModule(t.TCBSVN2)
	if err != nil {
		return 0, false
	}
	now, err := e.levels(p, &t.TCBSVN2, module, qe)
	if err != nil {
		return 0, false
	}
	switch now.status() {
	case tcbstatus.UpToDate, tcbstatus.SWHardeningNeeded:
		return tcbstatus.UpToDate, true
	case tcbstatus.ConfigurationNeeded, tcbstatus.ConfigurationAndSWHardeningNeeded:
		return tcbstatus.ConfigurationNeeded, true
	default:
		return 0, false
	}
}

// matchedLevels are the levels of platform, quoting enclave and TDX module; the last is nil if there is none.
type matchedLevels [3]*level

// levels finds them; svn is TEE_TCB_SVN of a trust domain, nil for an enclave.
func (e *Endorsements) levels(p *platform, svn *[16]byte, module *tdxModule, qe *level) (matchedLevels, error) {
	m := matchedLevels{e.platformLevel(p, svn), qe, nil}
	if m[0] == nil {
		return m, fmt.Errorf("the platform's TCB (components %v, PCESVN %d) is below every known level",
			p.ext.Components, p.ext.PCESVN)
	}
	if module != nil && len(module.levels) != 0 {
		if m[2] = isvLevel(module.levels, uint16(svn[0])); m[2] == nil {
			return m, fmt.Errorf("ISVSVN %d of TDX module %s is below every known level", svn[0], module.id)
		}
	}
	return m, nil
}

// platformLevel is the highest level that the platform reaches in every component.
func (e *Endorsements) platformLevel(p *platform, svn *[16]byte) *level {
	from := 0
	if svn != nil && svn[1] > 0 {
		from = 2 // the module's version and SVN are judged by its identity
	}
	for i := range e.tcb.levels {
		l := &e.tcb.levels[i]
		if p.ext.PCESVN >= l.pceSVN && reaches(p.ext.Components[:], l.sgx[:]) &&
			(svn == nil || reaches(svn[from:], l.tdx[from:])) {
			return &l.level
		}
	}
	return nil
}

func reaches(got, want []byte) bool {
	for i := range got {
		if got[i] < want[i] {
			return false
		}
	}
	return true
}

func isvLevel(levels []level, svn uint16) *level {
	for i := range levels {
		if svn >= levels[i].isvSVN {
			return &levels[i]
		}
	}
	return nil
}

// status converges the platform's status with those of quoting enclave and TDX module.
func (m matchedLevels) status() tcbstatus.Status {
	status := m[0].status
	for _, component := range m[1:] {
		switch {
		case component == nil:
		case component.status == tcbstatus.Revoked || status == tcbstatus.Revoked:
			status = tcbstatus.Revoked
		case component.status == tcbstatus.UpToDate:
		case status == tcbstatus.UpToDate || status == tcbstatus.SWHardeningNeeded:
			status = tcbstatus.OutOfDate
		case status == tcbstatus.ConfigurationNeeded || status == tcbstatus.ConfigurationAndSWHardeningNeeded:
			status = tcbstatus.OutOfDateConfigurationNeeded
		}
	}
	return status
}

// tdxModule is the identity of the module that TEE_TCB_SVN names, nil for modules of major version 0, which
// have no levels of their own.
func (e *Endorsements) tdxModule(svn [16]byte) (*tdxModule, error) {
	if svn[1] == 0 {
		if e.tcb.module == nil {
			return nil, fmt.Errorf("the TCB info has no TDX module")
		}
		return e.tcb.module, nil
	}
	id := fmt.Sprintf("TDX_%02X", svn[1])
	for _, m := range e.tcb.modules {
		if m.id == id {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the TCB info has no TDX module %s", id)
}

// match makes sure that the module measured in the quote is the one that the identity describes.
func (m *tdxModule) match(t *sgx.TDXBody) error {
	var attributes [8]byte
	binary.LittleEndian.PutUint64(attributes[:], t.SeamAttributes)
	switch {
	case t.MRSignerSeam != m.mrSigner:
		return fmt.Errorf("MRSIGNERSEAM is %x, want %x", t.MRSignerSeam, m.mrSigner)
	case t.SeamAttributes != 0 || !equalMasked(attributes[:], m.attributes[:], m.attributesMask[:]):
		return fmt.Errorf("SEAMATTRIBUTES are %x, want %x", attributes, m.attributes)
	}
	return nil
}
