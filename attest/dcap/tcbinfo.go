package dcap

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/edgelesssys/ego/attestation/tcbstatus"

	"github.com/sesame-init/sesame/attest"
)

// tcbInfo is a TCB info of version 2 or 3, levels in descending order.
type tcbInfo struct {
	id         attest.EvidenceType // version 2 has none, it is SGX
	issueDate  time.Time
	nextUpdate time.Time
	fmspc      [6]byte
	pceID      [2]byte
	evaluation uint32
	levels     []tcbLevel
	module     *tdxModule   // TDX only: for modules of major version 0
	modules    []*tdxModule // TDX only: for the others
}

// tcbLevel is one row of TCB info.
type tcbLevel struct {
	sgx    [16]byte
	pceSVN uint16
	tdx    [16]byte
	level
}

// level is what TCB info and identities have in common per level.
type level struct {
	isvSVN     uint16 // identities only
	status     tcbstatus.Status
	date       time.Time
	advisories []string
}

// tdxModule is the identity of a TDX module.
type tdxModule struct {
	id             string // "TDX_01"
	mrSigner       [48]byte
	attributes     [8]byte
	attributesMask [8]byte
	levels         []level
}

func parseTCBInfo(text string) (*tcbInfo, error) {
	const (
		fID fields = 1 << iota
		fVersion
		fIssueDate
		fNextUpdate
		fFMSPC
		fPCEID
		fType
		fEvaluation
		fLevels
		fModule
		fModules
		required = fVersion | fIssueDate | fNextUpdate | fFMSPC | fPCEID | fType | fEvaluation | fLevels
	)
	t := new(tcbInfo)
	var seen fields
	var version uint64
	var id string
	r := &jsonReader{s: text}
	r.object(func(name string) {
		var f fields
		switch name {
		case "id":
			f, id = fID, r.text()
		case "version":
			f, version = fVersion, r.number(1<<16)
		case "issueDate":
			f, t.issueDate = fIssueDate, r.time()
		case "nextUpdate":
			f, t.nextUpdate = fNextUpdate, r.time()
		case "fmspc":
			f = fFMSPC
			r.hex(t.fmspc[:])
		case "pceId":
			f = fPCEID
			r.hex(t.pceID[:])
		case "tcbType":
			f = fType
			if n := r.number(1 << 16); n != 0 {
				r.fail("TCB type %d has an unknown order of levels", n)
			}
		case "tcbEvaluationDataNumber":
			f, t.evaluation = fEvaluation, uint32(r.number(1<<32-1))
		case "tcbLevels":
			f = fLevels
			r.array(func() { t.levels = append(t.levels, r.tcbLevel()) })
		case "tdxModule":
			f, t.module = fModule, r.tdxModule()
		case "tdxModuleIdentities":
			f = fModules
			r.array(func() { t.modules = append(t.modules, r.tdxModule()) })
		default:
			r.skip()
		}
		r.once(&seen, f, name)
	})
	if err := r.end(); err != nil {
		return nil, err
	}
	if seen&required != required {
		return nil, errors.New("a required field is missing")
	}
	switch {
	case version == 2 && seen&fID == 0, version == 3 && id == "SGX":
		t.id = attest.SGX
	case version == 3 && id == "TDX":
		t.id = attest.TDX
	default:
		return nil, fmt.Errorf("TCB info of version %d and id %q is unknown", version, id)
	}
	return t, t.sort()
}

// sort orders all levels descending and refuses doubled ones, whose order would decide.
func (t *tcbInfo) sort() error {
	compare := func(a, b tcbLevel) int {
		return cmp.Or(bytes.Compare(b.sgx[:], a.sgx[:]), cmp.Compare(b.pceSVN, a.pceSVN), bytes.Compare(b.tdx[:], a.tdx[:]))
	}
	if err := sortLevels(t.levels, compare); err != nil {
		return err
	}
	for _, m := range t.modules {
		if err := sortLevels(m.levels, compareISVSVN); err != nil {
			return fmt.Errorf("TDX module %q: %w", m.id, err)
		}
	}
	return nil
}

func compareISVSVN(a, b level) int { return cmp.Compare(b.isvSVN, a.isvSVN) }

func sortLevels[L any](levels []L, compare func(a, b L) int) error {
	if len(levels) == 0 {
		return errors.New("there is no TCB level")
	}
	slices.SortFunc(levels, compare)
	for i := 1; i < len(levels); i++ {
		if compare(levels[i-1], levels[i]) == 0 {
			return errors.New("a TCB level appears twice")
		}
	}
	return nil
}

// Fields of a level and of its "tcb" object.
const (
	fTCB fields = 1 << iota
	fDate
	fStatus
	fAdvisories
	levelRequired = fTCB | fDate | fStatus
)

// level reads a level; tcb reads its "tcb" object.
func (r *jsonReader) level(tcb func()) level {
	var l level
	var seen fields
	r.object(func(name string) {
		var f fields
		switch name {
		case "tcb":
			f = fTCB
			tcb()
		case "tcbDate":
			f, l.date = fDate, r.time()
		case "tcbStatus":
			f, l.status = fStatus, r.status()
		case "advisoryIDs":
			f = fAdvisories
			r.array(func() { l.advisories = append(l.advisories, r.text()) })
		default:
			r.skip()
		}
		r.once(&seen, f, name)
	})
	if seen&levelRequired != levelRequired {
		r.fail("a required field of a TCB level is missing")
	}
	return l
}

func (r *jsonReader) status() tcbstatus.Status {
	name := r.text()
	for s := tcbstatus.UpToDate; s < tcbstatus.Unknown; s++ {
		if s.String() == name {
			return s
		}
	}
	r.fail("unknown TCB status %q", name)
	return tcbstatus.Unknown
}

// tcbLevel reads a level of TCB info: version 3 has lists of 16 components, version 2 a field for each.
func (r *jsonReader) tcbLevel() tcbLevel {
	const (
		sgx    = fields(0xffff)
		pceSVN = fields(1 << 16)
		tdx    = fields(1 << 17)
	)
	var l tcbLevel
	var seen fields
	l.level = r.level(func() {
		r.object(func(name string) {
			var f fields
			switch name {
			case "pcesvn":
				f, l.pceSVN = pceSVN, uint16(r.number(0xffff))
			case "sgxtcbcomponents":
				f = sgx
				r.components(&l.sgx)
			case "tdxtcbcomponents":
				f = tdx
				r.components(&l.tdx)
			default:
				n := componentNumber(name)
				if n == 0 {
					r.skip()
					break
				}
				f = 1 << (n - 1)
				l.sgx[n-1] = byte(r.number(0xff))
			}
			r.once(&seen, f, name)
		})
	})
	if seen&(sgx|pceSVN) != sgx|pceSVN {
		r.fail("a TCB component or the PCESVN of a TCB level is missing")
	}
	return l
}

// componentNumber is 1 to 16 for "sgxtcbcomp01svn" to "sgxtcbcomp16svn", else 0.
func componentNumber(name string) int {
	digits, ok := strings.CutPrefix(name, "sgxtcbcomp")
	digits, svn := strings.CutSuffix(digits, "svn")
	if !ok || !svn || len(digits) != 2 {
		return 0
	}
	n := int(digits[0]-'0')*10 + int(digits[1]-'0')
	if digits[0] > '1' || digits[1] < '0' || digits[1] > '9' || n > 16 {
		return 0
	}
	return max(n, 0)
}

func (r *jsonReader) components(out *[16]byte) {
	n := 0
	r.array(func() {
		var seen fields
		var svn byte
		r.object(func(name string) {
			if name != "svn" {
				r.skip()
				return
			}
			r.once(&seen, 1, name)
			svn = byte(r.number(0xff))
		})
		if seen == 0 || n == len(out) {
			r.fail("want 16 components with an svn each")
			return
		}
		out[n] = svn
		n++
	})
	if n != len(out) {
		r.fail("%d TCB components, want %d", n, len(out))
	}
}

func (r *jsonReader) tdxModule() *tdxModule {
	const (
		fSigner fields = 1 << iota
		fAttributes
		fMask
		fID
		fLevels
	)
	m := new(tdxModule)
	var seen fields
	r.object(func(name string) {
		var f fields
		switch name {
		case "id":
			f, m.id = fID, r.text()
		case "mrsigner":
			f = fSigner
			r.hex(m.mrSigner[:])
		case "attributes":
			f = fAttributes
			r.hex(m.attributes[:])
		case "attributesMask":
			f = fMask
			r.hex(m.attributesMask[:])
		case "tcbLevels":
			f = fLevels
			r.array(func() { m.levels = append(m.levels, r.isvLevel()) })
		default:
			r.skip()
		}
		r.once(&seen, f, name)
	})
	if seen&(fSigner|fAttributes|fMask) != fSigner|fAttributes|fMask {
		r.fail("a required field of a TDX module is missing")
	}
	return m
}

// isvLevel reads a level of an identity.
func (r *jsonReader) isvLevel() level {
	var seen fields
	var svn uint16
	l := r.level(func() {
		r.object(func(name string) {
			if name != "isvsvn" {
				r.skip()
				return
			}
			r.once(&seen, 1, name)
			svn = uint16(r.number(0xffff))
		})
	})
	if seen == 0 {
		r.fail("the isvsvn of a TCB level is missing")
	}
	l.isvSVN = svn
	return l
}
