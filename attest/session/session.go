// Package session is the session protocol, version 1: two sides prove to each other, inside one TLS 1.3 connection,
// what they are, with evidence that was made for this very connection. docs/protocol.md is its specification and
// gives the argument for its security; the messages are in package sessionpb.
//
// RA-TLS (package ratls) shows evidence that is as old as a certificate. Here each side's report data is a
// hash over a nonce of both sides, the keys of both sides' certificates and a secret exported from the TLS
// connection. So evidence can be neither replayed on nor relayed into another connection. The certificates
// themselves prove nothing; they only carry the keys.
//
// The broker shows its evidence first, and the client sends neither its own evidence nor the names of its secrets to
// a broker that it does not accept. One quote of the broker may cover many sessions that arrive together: their
// hashes are the leaves of a Merkle tree, and each client gets the path to its own.
//
// What a session proves is the state of both sides while it was set up. It does not say that the peer stays so, and
// for the enclave of an init it says that code with this measurement asked, which includes the application: both
// share the enclave.
//
// # Compatibility
//
// Other modules may import this package. Within a major version its exported names keep their meaning. The two sides of
// a session may be of different releases of one major version: messages and fields are added, not changed.
package session

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/attest/session/sessionpb"
	"github.com/sesame-init/sesame/internal/reportdata"
)

// Bounds of the protocol.
const (
	NonceSize   = 32
	MaxSessions = 1024 // that one quote covers
	MaxNames    = 64   // of one request
	MaxName     = 255  // bytes
	MaxSecret   = 1 << 20

	maxEvidence   = 64 << 10
	maxCollateral = 4 << 20 // all documents together
	maxReason     = 2 << 10
	maxMessage    = maxCollateral + maxEvidence + MaxSecret // that a client takes
)

// A Role is the side of a session that evidence belongs to.
type Role byte

// The roles.
const (
	Client Role = 'C'
	Broker Role = 'B'
	// Prover is the broker on a connection that carries another protocol. Its leaves share quotes with those of Broker,
	// so the report data of both has the role Broker.
	Prover Role = 'P'
)

const (
	exporterLabel = "EXPORTER-sesame-session-v1"
	leafLabel     = "sesame-session-v1/leaf"

	noEvidence = "none" // type of evidence of a broker that runs outside an enclave
	pushback   = "grpc-retry-pushback-ms"
)

// Binding is what evidence of a session is bound to. It belongs to one TLS connection.
type Binding struct {
	Exporter    [32]byte // RFC 8446, 7.5, with the label of the protocol and no context
	ClientNonce [NonceSize]byte
	BrokerNonce [NonceSize]byte
	ClientKey   [32]byte // SHA-256 of the DER SubjectPublicKeyInfo
	BrokerKey   [32]byte
}

// Leaf is the hash of a session for one side's evidence. All parts have fixed lengths.
func (b *Binding) Leaf(r Role) tlog.Hash {
	data := append([]byte(leafLabel), byte(r))
	for _, part := range [][32]byte{b.Exporter, b.ClientNonce, b.BrokerNonce, b.ClientKey, b.BrokerKey} {
		data = append(data, part[:]...)
	}
	return tlog.RecordHash(data) // SHA-256 of 0x00 and data, as in RFC 6962
}

// ReportData is what evidence that covers size sessions with this root must carry.
func ReportData(r Role, size uint32, root tlog.Hash) attest.ReportData {
	producer := reportdata.SessionClient
	if r != Client {
		producer = reportdata.SessionBroker
	}
	input := binary.BigEndian.AppendUint32([]byte(producer.Begins()), size)
	data, err := producer.Data(append(input, root[:]...))
	if err != nil {
		panic(err) // the input has the form by construction
	}
	return data
}

// A Proof places a session among those that one quote covers.
type Proof struct {
	Size, Index uint32
	Path        tlog.RecordProof
}

// ReportData is the report data that evidence must have for the proof to hold for this leaf.
func (p *Proof) ReportData(r Role, leaf tlog.Hash) (attest.ReportData, error) {
	root, err := p.root(leaf)
	if err != nil {
		return attest.ReportData{}, err
	}
	return ReportData(r, p.Size, root), nil
}

// root follows the path. Its length is exactly what index and size demand (RFC 9162, 2.1.3.2).
func (p *Proof) root(leaf tlog.Hash) (tlog.Hash, error) {
	if p.Size == 0 || p.Size > MaxSessions || p.Index >= p.Size {
		return tlog.Hash{}, fmt.Errorf("session %d of %d is out of bounds", p.Index, p.Size)
	}
	hash, path := leaf, p.Path
	for index, last := p.Index, p.Size-1; last > 0; index, last = index>>1, last>>1 {
		if index == last && index&1 == 0 {
			continue // a lone last node moves up as it is
		}
		if len(path) == 0 {
			return tlog.Hash{}, errors.New("the path to the root is too short")
		}
		if index&1 == 1 {
			hash = tlog.NodeHash(path[0], hash)
		} else {
			hash = tlog.NodeHash(hash, path[0])
		}
		path = path[1:]
	}
	if len(path) != 0 {
		return tlog.Hash{}, errors.New("the path to the root is too long")
	}
	return hash, nil
}

// binding takes from a TLS connection what belongs to it.
func binding(cs tls.ConnectionState, own *x509.Certificate, self Role) (Binding, error) {
	var b Binding
	if cs.Version != tls.VersionTLS13 || !cs.HandshakeComplete {
		return b, errors.New("the session protocol needs TLS 1.3")
	}
	if len(cs.PeerCertificates) == 0 {
		return b, errors.New("the peer has shown no certificate")
	}
	exported, err := cs.ExportKeyingMaterial(exporterLabel, nil, len(b.Exporter))
	if err != nil {
		return b, fmt.Errorf("exporting from TLS: %w", err)
	}
	copy(b.Exporter[:], exported)
	b.ClientKey = sha256.Sum256(own.RawSubjectPublicKeyInfo)
	b.BrokerKey = sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
	if self == Broker {
		b.ClientKey, b.BrokerKey = b.BrokerKey, b.ClientKey
	}
	return b, nil
}

// setNonce checks the size of a nonce from the wire.
func setNonce(to *[NonceSize]byte, from []byte) error {
	if len(from) != NonceSize {
		return fmt.Errorf("a nonce of %d bytes, want %d", len(from), NonceSize)
	}
	copy(to[:], from)
	return nil
}

func encodeEvidence(e attest.Evidence, p Proof) *sessionpb.Evidence {
	out := &sessionpb.Evidence{Type: string(e.Type), Raw: e.Raw, Size: p.Size, Index: p.Index}
	for _, h := range p.Path {
		out.Path = append(out.Path, append([]byte(nil), h[:]...))
	}
	return out
}

// decodeEvidence bounds evidence from the wire and says which report data it must have.
func decodeEvidence(e *sessionpb.Evidence, r Role, leaf tlog.Hash) (attest.Evidence, attest.ReportData, error) {
	var none attest.ReportData
	if len(e.GetRaw()) == 0 || len(e.GetRaw()) > maxEvidence {
		return attest.Evidence{}, none, fmt.Errorf("evidence of %d bytes", len(e.GetRaw()))
	}
	p := Proof{Size: e.GetSize(), Index: e.GetIndex()}
	for _, h := range e.GetPath() {
		if len(h) != tlog.HashSize || len(p.Path) > 10 {
			return attest.Evidence{}, none, errors.New("the path to the root is malformed")
		}
		p.Path = append(p.Path, tlog.Hash(h))
	}
	data, err := p.ReportData(r, leaf)
	if err != nil {
		return attest.Evidence{}, none, err
	}
	return attest.Evidence{Type: attest.EvidenceType(e.GetType()), Raw: e.GetRaw()}, data, nil
}
