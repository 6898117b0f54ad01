package rootkey

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/sesame-init/sesame/attest"
)

// MaxShares is the most shares that a key is split into.
const MaxShares = 32

// shareGroup is the field of the sharing's numbers: those below the order of P-256.
var shareGroup = group.P256

// Split is the way of shares, to make them: New fills Shares with Number texts, any Threshold of which open the slot.
// The slot's parameters have the sharing's commitments, so that a wrong share is recognised by itself. They reveal
// nothing else: the shared number is random, and to learn it from its commitment takes a discrete logarithm.
type Split struct {
	Threshold, Number int
	Shares            []attest.Secret
}

// sharesParams describe a sharing.
type sharesParams struct {
	Sharing     string   `json:"sharing"` // SHA-256 of the first commitment, 4 bytes: shares of two sharings do not mix
	Threshold   int      `json:"threshold"`
	Number      int      `json:"number"`
	Commitments []string `json:"commitments"`
}

// Kind implements [Way].
func (*Split) Kind() string { return "shares" }

// New implements [Way].
func (s *Split) New(context.Context) (params []byte, key attest.Secret, err error) {
	const step = "splitting key"
	if s.Threshold < 2 || s.Number < s.Threshold || s.Number > MaxShares {
		return nil, key, attest.Errorf(attest.CodeConfig, step, "Take a threshold of at least 2.",
			"%d of %d shares cannot be: at most %d, at least as many as needed", s.Threshold, s.Number, MaxShares)
	}
	secret := shareGroup.RandomNonZeroScalar(rand.Reader)
	sharing := secretsharing.New(rand.Reader, uint(s.Threshold-1), secret)
	p := sharesParams{Threshold: s.Threshold, Number: s.Number}
	for _, c := range sharing.CommitSecret() {
		raw, err := c.MarshalBinaryCompress()
		if err != nil {
			return nil, key, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
		}
		p.Commitments = append(p.Commitments, hex.EncodeToString(raw))
	}
	p.Sharing = p.name()
	for i, share := range sharing.Share(uint(s.Number)) {
		raw, err := share.Value.MarshalBinary()
		if err != nil {
			return nil, key, attest.Errorf(attest.CodeInternal, step, "", "%w", err)
		}
		s.Shares = append(s.Shares, encodeShare(p.Sharing, i+1, raw))
		clear(raw)
	}
	if params, err = json.Marshal(p); err != nil {
		return nil, key, err
	}
	key, err = scalarKey(secret)
	return params, key, err
}

// Derive implements [Way]. A sharing that was just made needs no opening.
func (*Split) Derive(context.Context, []byte) (attest.Secret, error) {
	return attest.Secret{}, attest.Errorf(attest.CodeDenied, stepUnwrap, "", "shares are given one by one")
}

func (p *sharesParams) name() string {
	sum := sha256.Sum256([]byte(strings.Join(p.Commitments, " ")))
	return hex.EncodeToString(sum[:4])
}

// Shares is the way of shares, to use them. It gathers them until there are enough. It is not safe for concurrent use.
type Shares struct {
	found map[string]map[int]group.Scalar
}

// Kind implements [Way].
func (*Shares) Kind() string { return "shares" }

// New implements [Way].
func (*Shares) New(context.Context) (params []byte, key attest.Secret, err error) {
	return nil, key, attest.Errorf(attest.CodeInternal, stepWrap, "", "shares are made by splitting")
}

// Add takes a share for one of the slots, and says how many more of its sharing are needed. The error's code is
// [attest.CodeDenied]; it says which share is wrong.
func (s *Shares) Add(text attest.Secret, slots []Slot) (missing int, err error) {
	const step = "reading share"
	sharing, index, raw, err := decodeShare(text)
	defer clear(raw)
	if err != nil {
		return 0, attest.Errorf(attest.CodeDenied, step, "Copy the share anew, letter by letter.", "%w", err)
	}
	for _, slot := range slots {
		p, commitments, err := parseShares(slot)
		if err != nil || p.Sharing != sharing {
			continue
		}
		share := secretsharing.Share{ID: shareGroup.NewScalar().SetUint64(uint64(index)), Value: shareGroup.NewScalar()}
		if err := share.Value.UnmarshalBinary(raw); err != nil || index > p.Number ||
			!secretsharing.Verify(uint(p.Threshold-1), share, commitments) {
			return 0, attest.Errorf(attest.CodeDenied, step, "", "share %d is not what was given out", index)
		}
		if s.found == nil {
			s.found = map[string]map[int]group.Scalar{}
		}
		if s.found[sharing] == nil {
			s.found[sharing] = map[int]group.Scalar{}
		}
		s.found[sharing][index] = share.Value
		return max(p.Threshold-len(s.found[sharing]), 0), nil
	}
	return 0, attest.Errorf(attest.CodeDenied, step, "It belongs to another store, or its slot was removed.",
		"no slot has the sharing %s", sharing)
}

// Derive implements [Way].
func (s *Shares) Derive(_ context.Context, params []byte) (attest.Secret, error) {
	p, _, err := parseShares(Slot{Kind: "shares", Params: params})
	if err != nil {
		return attest.Secret{}, malformed(err)
	}
	var shares []secretsharing.Share
	for index, value := range s.found[p.Sharing] {
		shares = append(shares, secretsharing.Share{ID: shareGroup.NewScalar().SetUint64(uint64(index)), Value: value})
	}
	if len(shares) < p.Threshold {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, stepUnwrap, "", "%d of %d shares are there", len(shares), p.Threshold)
	}
	secret, err := secretsharing.Recover(uint(p.Threshold-1), shares)
	if err != nil {
		return attest.Secret{}, attest.Errorf(attest.CodeDenied, stepUnwrap, "", "%w", err)
	}
	return scalarKey(secret)
}

// Forget overwrites the shares.
func (s *Shares) Forget() {
	for _, sharing := range s.found {
		for _, value := range sharing {
			value.SetUint64(0)
		}
	}
	s.found = nil
}

func parseShares(slot Slot) (*sharesParams, secretsharing.SecretCommitment, error) {
	p := &sharesParams{}
	if slot.Kind != "shares" {
		return nil, nil, errors.New("another kind")
	}
	if err := json.Unmarshal(slot.Params, p); err != nil {
		return nil, nil, err
	}
	if p.Threshold < 2 || p.Number < p.Threshold || p.Number > MaxShares || len(p.Commitments) != p.Threshold || p.Sharing != p.name() {
		return nil, nil, errors.New("they are out of bounds")
	}
	var commitments secretsharing.SecretCommitment
	for _, c := range p.Commitments {
		raw, err := hex.DecodeString(c)
		if err != nil {
			return nil, nil, err
		}
		e := shareGroup.NewElement()
		if err := e.UnmarshalBinary(raw); err != nil {
			return nil, nil, err
		}
		commitments = append(commitments, e)
	}
	return p, commitments, nil
}

func scalarKey(s group.Scalar) (attest.Secret, error) {
	raw, err := s.MarshalBinary()
	if err != nil {
		return attest.Secret{}, err
	}
	defer clear(raw)
	return derive(raw, "sesame shared key v1")
}

const sharePrefix = "sesame-share-1"

// encodeShare is the text of a share: prefix, sharing, index, value in base64url, and 4 bytes of a checksum.
func encodeShare(sharing string, index int, value []byte) attest.Secret {
	sum := shareSum(sharing, index, value)
	return attest.NewSecret(fmt.Appendf(nil, "%s.%s.%d.%s.%s", sharePrefix, sharing, index,
		base64.RawURLEncoding.EncodeToString(value), hex.EncodeToString(sum)))
}

func shareSum(sharing string, index int, value []byte) []byte {
	sum := sha256.Sum256(Bind(sharePrefix, sharing, strconv.Itoa(index), string(value)))
	return sum[:4]
}

func decodeShare(text attest.Secret) (sharing string, index int, value []byte, err error) {
	if text.Len() > 256 {
		return "", 0, nil, errors.New("it is too long")
	}
	parts := strings.Split(strings.TrimSpace(string(text.Expose())), ".")
	if len(parts) != 5 || parts[0] != sharePrefix {
		return "", 0, nil, errors.New("it does not look like one")
	}
	index, err = strconv.Atoi(parts[2])
	if err != nil || index < 1 || index > MaxShares || strconv.Itoa(index) != parts[2] {
		return "", 0, nil, errors.New("its number is malformed")
	}
	value, err = base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || hex.EncodeToString(shareSum(parts[1], index, value)) != parts[4] {
		clear(value)
		return "", 0, nil, errors.New("its checksum is wrong: a letter was changed")
	}
	return parts[1], index, value, nil
}
