package dcap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/sesame-init/sesame/attest/sgx"
)

// Kinds of enclave identity that verify quotes.
const (
	identityQE   = "QE"
	identityTDQE = "TD_QE"
)

// qeIdentity is an enclave identity of version 2, levels in descending order.
type qeIdentity struct {
	id             string
	issueDate      time.Time
	nextUpdate     time.Time
	evaluation     uint32
	miscSelect     [4]byte // bytes as in a report body, as are all that follow
	miscSelectMask [4]byte
	attributes     [16]byte
	attributesMask [16]byte
	mrSigner       [32]byte
	isvProdID      uint16
	levels         []level
}

func parseQEIdentity(text string) (*qeIdentity, error) {
	const (
		fID fields = 1 << iota
		fVersion
		fIssueDate
		fNextUpdate
		fEvaluation
		fMiscSelect
		fMiscSelectMask
		fAttributes
		fAttributesMask
		fSigner
		fProdID
		fLevels
		end
	)
	q := new(qeIdentity)
	var seen fields
	r := &jsonReader{s: text}
	r.object(func(name string) {
		var f fields
		switch name {
		case "id":
			f, q.id = fID, r.text()
		case "version":
			f = fVersion
			if n := r.number(1 << 16); n != 2 {
				r.fail("enclave identity of version %d, want 2", n)
			}
		case "issueDate":
			f, q.issueDate = fIssueDate, r.time()
		case "nextUpdate":
			f, q.nextUpdate = fNextUpdate, r.time()
		case "tcbEvaluationDataNumber":
			f, q.evaluation = fEvaluation, uint32(r.number(1<<32-1))
		case "miscselect":
			f = fMiscSelect
			r.hex(q.miscSelect[:])
		case "miscselectMask":
			f = fMiscSelectMask
			r.hex(q.miscSelectMask[:])
		case "attributes":
			f = fAttributes
			r.hex(q.attributes[:])
		case "attributesMask":
			f = fAttributesMask
			r.hex(q.attributesMask[:])
		case "mrsigner":
			f = fSigner
			r.hex(q.mrSigner[:])
		case "isvprodid":
			f, q.isvProdID = fProdID, uint16(r.number(0xffff))
		case "tcbLevels":
			f = fLevels
			r.array(func() { q.levels = append(q.levels, r.isvLevel()) })
		default:
			r.skip()
		}
		r.once(&seen, f, name)
	})
	if err := r.end(); err != nil {
		return nil, err
	}
	if seen != end-1 {
		return nil, errors.New("a required field is missing")
	}
	return q, sortLevels(q.levels, compareISVSVN)
}

// match makes sure that the report is one of the quoting enclave that the identity describes.
func (q *qeIdentity) match(r *sgx.ReportBody, raw []byte) error {
	switch {
	case !equalMasked(raw[16:20], q.miscSelect[:], q.miscSelectMask[:]):
		return fmt.Errorf("MISCSELECT is %#08x, want %#08x", r.MiscSelect, binary.LittleEndian.Uint32(q.miscSelect[:]))
	case !equalMasked(raw[48:64], q.attributes[:], q.attributesMask[:]):
		return fmt.Errorf("ATTRIBUTES are %x, want %x under %x", raw[48:64], q.attributes, q.attributesMask)
	case r.MRSigner != q.mrSigner:
		return fmt.Errorf("MRSIGNER is %x, want %x", r.MRSigner, q.mrSigner)
	case r.ProductID != q.isvProdID:
		return fmt.Errorf("ISVPRODID is %d, want %d", r.ProductID, q.isvProdID)
	}
	return nil
}

func equalMasked(got, want, mask []byte) bool {
	var diff byte
	for i := range got {
		diff |= got[i]&mask[i] ^ want[i]
	}
	return diff == 0
}
