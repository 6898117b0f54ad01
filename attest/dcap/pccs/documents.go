package pccs

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sesame-init/sesame/attest/dcap"
)

// marks are the numbers of collateral that only rise.
type marks struct {
	tcbInfo, qeIdentity uint32 // tcbEvaluationDataNumber
	pckCRL, rootCRL     *big.Int
}

// notBefore fails where a mark is below that of seen. The zero value of marks is below everything.
func (m marks) notBefore(seen marks) error {
	switch {
	case m.tcbInfo < seen.tcbInfo:
		return fmt.Errorf("TCB info has evaluation number %d after %d", m.tcbInfo, seen.tcbInfo)
	case m.qeIdentity < seen.qeIdentity:
		return fmt.Errorf("QE identity has evaluation number %d after %d", m.qeIdentity, seen.qeIdentity)
	case seen.pckCRL != nil && m.pckCRL.Cmp(seen.pckCRL) < 0:
		return fmt.Errorf("PCK CRL has number %v after %v", m.pckCRL, seen.pckCRL)
	case seen.rootCRL != nil && m.rootCRL.Cmp(seen.rootCRL) < 0:
		return fmt.Errorf("root CA CRL has number %v after %v", m.rootCRL, seen.rootCRL)
	}
	return nil
}

// read finds out what the cache must know of collateral: whether it is for r, its marks, and when the first of
// its documents expires. It does not verify.
func read(r dcap.Request, c *dcap.Collateral) (marks, time.Time, error) {
	var m marks
	var info struct {
		TCBInfo struct {
			NextUpdate time.Time `json:"nextUpdate"`
			FMSPC      string    `json:"fmspc"`
			Evaluation uint32    `json:"tcbEvaluationDataNumber"`
		} `json:"tcbInfo"`
	}
	if err := json.Unmarshal(c.TCBInfo, &info); err != nil {
		return m, time.Time{}, fmt.Errorf("TCB info: %w", err)
	}
	if fmspc := fmt.Sprintf("%X", r.FMSPC); !strings.EqualFold(info.TCBInfo.FMSPC, fmspc) {
		return m, time.Time{}, fmt.Errorf("TCB info is for FMSPC %.12q, not %s", info.TCBInfo.FMSPC, fmspc)
	}
	var identity struct {
		Identity struct {
			NextUpdate time.Time `json:"nextUpdate"`
			Evaluation uint32    `json:"tcbEvaluationDataNumber"`
		} `json:"enclaveIdentity"`
	}
	if err := json.Unmarshal(c.QEIdentity, &identity); err != nil {
		return m, time.Time{}, fmt.Errorf("QE identity: %w", err)
	}
	pck, err := parseCRL(c.PCKCRL)
	if err != nil {
		return m, time.Time{}, fmt.Errorf("PCK CRL: %w", err)
	}
	root, err := parseCRL(c.RootCACRL)
	if err != nil {
		return m, time.Time{}, fmt.Errorf("root CA CRL: %w", err)
	}
	m = marks{info.TCBInfo.Evaluation, identity.Identity.Evaluation, pck.Number, root.Number}
	expiries := []time.Time{info.TCBInfo.NextUpdate, identity.Identity.NextUpdate, pck.NextUpdate, root.NextUpdate}
	return m, slices.MinFunc(expiries, time.Time.Compare), nil
}

// parseCRL reads a CRL in any of the forms in which services give it: DER, PEM or hexadecimal.
func parseCRL(raw []byte) (*x509.RevocationList, error) {
	der := raw
	text := bytes.TrimSpace(raw)
	switch {
	case len(text) == 0:
		return nil, errors.New("empty")
	case bytes.HasPrefix(text, []byte("-----")):
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, errors.New("malformed PEM")
		}
		der = block.Bytes
	case raw[0] != 0x30: // a SEQUENCE; no hexadecimal text of one begins with this byte, "0"
		var err error
		if der, err = hex.DecodeString(string(text)); err != nil {
			return nil, err
		}
	}
	list, err := x509.ParseRevocationList(der)
	if err == nil && list.Number == nil {
		err = errors.New("no CRL number")
	}
	return list, err
}

// save writes collateral to the disk cache. The time of the TCB info file says when it was fetched.
func (c *Client) save(r dcap.Request, collateral *dcap.Collateral, now time.Time) error {
	path := c.directory(r)
	if err := WriteDir(path, collateral); err != nil {
		return err
	}
	return os.Chtimes(filepath.Join(path, fileTCBInfo), now, now)
}

// load reads an entry from the disk cache. The disk is not trusted more than the network.
func (c *Client) load(r dcap.Request, now time.Time) (entry, error) {
	path := c.directory(r)
	collateral, err := Dir(path).Collateral(context.Background(), r)
	if err != nil {
		return entry{}, err
	}
	info, err := os.Stat(filepath.Join(path, fileTCBInfo))
	if err != nil {
		return entry{}, err
	}
	fetched := info.ModTime()
	if fetched.After(now) {
		fetched = now
	}
	e, err := c.judge(c.ctx, r, collateral, fetched)
	if err != nil {
		return entry{}, err
	}
	e.refresh = fetched.Add(min(e.expires.Sub(fetched)*2/3, c.config.MaxAge))
	return e, nil
}
