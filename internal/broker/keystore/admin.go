package keystore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/releaselog"
	"github.com/sesame-init/sesame/internal/broker/store"
)

// A Listing is what is shown of a secret.
type Listing struct {
	Name     string
	Releases uint64
	ReadOnly bool      // it is of a file
	Versions []Version // the oldest first
}

// A Version is what is shown of one version of a secret.
type Version struct {
	ID        string // random
	Kind      Kind
	Created   time.Time
	Withdrawn time.Time // zero while it is valid
}

// List lists the secrets by name: never values, nor anything computed from them.
func (k *Keystore) List(ctx context.Context) (list []Listing, err error) {
	err = k.readLog(ctx, func(_ store.Reader, s *state, _ *keys) error {
		list = nil
		for name := range k.options.Fixed {
			list = append(list, Listing{Name: name, ReadOnly: true, Releases: s.head.Counts[name],
				Versions: []Version{{ID: versionOfFile, Kind: File}}})
		}
		for name, versions := range s.catalog.Secrets {
			if _, hidden := k.options.Fixed[name]; hidden {
				continue
			}
			l := Listing{Name: name, Releases: s.head.Counts[name]}
			for _, v := range versions {
				shown := Version{ID: v.ID, Kind: Kind(v.Kind), Created: v.Created}
				if v.Withdrawn != nil {
					shown.Withdrawn = *v.Withdrawn
				}
				l.Versions = append(l.Versions, shown)
			}
			list = append(list, l)
		}
		slices.SortFunc(list, func(a, b Listing) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
		return nil
	})
	return list, err
}

// administer makes a change and records it, in one transaction. change gets a catalog of its own and may run again.
func (k *Keystore) administer(ctx context.Context, by, action, detail string, change func(store.Writer, *state) error) error {
	ring, err := k.ring()
	if err != nil {
		return err
	}
	var s *state
	err = k.update(ctx, func(w store.Writer) (err error) {
		if s, err = k.load(w, ring); err != nil {
			return err
		}
		if err := s.begin(w); err != nil {
			return err
		}
		s.catalog, s.dirty = s.catalog.clone(), true
		s.head.Counts = maps.Clone(s.head.Counts)
		if err := change(w, s); err != nil {
			return err
		}
		if _, err := s.note(k.options.Now(), by, action, detail); err != nil {
			return err
		}
		return s.write(w, ring)
	})
	if err == nil {
		k.committed(s)
		k.catalog.Store(s.catalog)
	}
	return err
}

// note appends an entry about an administrator's change.
func (s *state) note(at time.Time, by, action, detail string) (appendedEntry, error) {
	entry := releaselog.Entry{Kind: releaselog.Admin, Time: releaselog.Timestamp(at),
		Admin: &releaselog.Administered{By: by, Action: action, Detail: detail}}
	text, err := entry.Encode()
	if err != nil {
		return appendedEntry{}, err
	}
	index, err := s.log.Append(text)
	return appendedEntry{index, text}, err
}

type appendedEntry struct {
	index int64
	text  []byte
}

// Mistimed records that an entry of the log has a time that a wrong clock gave it, and why that is known. The entry stays as
// it is: nothing in a broker rests on its time.
func (k *Keystore) Mistimed(ctx context.Context, by string, index int64, reason string) error {
	const step = "marking entry"
	if reason == "" || len(reason) > MaxName || strings.ContainsFunc(reason, unicode.IsControl) || !utf8.ValidString(reason) {
		return attest.Errorf(attest.CodeConfig, step, "Say why the time is wrong.", "a reason has 1 to %d bytes, all printable", MaxName)
	}
	entries, _, err := k.Entries(ctx, index, 1)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return attest.Errorf(attest.CodeConfig, step, "See sesame log list.", "there is no entry %d", index)
	}
	var entry releaselog.Entry
	if err := json.Unmarshal(entries[0], &entry); err != nil {
		return attest.Errorf(attest.CodeInternal, step, "", "entry %d: %w", index, err)
	}
	return k.administer(ctx, by, "log.mistimed", fmt.Sprintf("entry %d of %s: %s", index, entry.Time, reason),
		func(store.Writer, *state) error { return nil })
}

// Put stores the first version of a secret. Rotate stores a further one, which is released from then on. Earlier
// versions stay valid until they are withdrawn: a policy may name them, and they take over if the newer ones are
// withdrawn. Both return the version's id and leave the value to the caller.
func (k *Keystore) Put(ctx context.Context, by, name string, kind Kind, value attest.Secret) (version string, err error) {
	return k.add(ctx, by, "secret.put", name, kind, value, func(versions []secretVersion) error {
		if len(versions) > 0 {
			return attest.Errorf(attest.CodeConfig, "putting secret", "Rotate it, or delete it first.", "there is a secret %q already", name)
		}
		return nil
	})
}

// Rotate stores a further version; see Put.
func (k *Keystore) Rotate(ctx context.Context, by, name string, kind Kind, value attest.Secret) (version string, err error) {
	return k.add(ctx, by, "secret.rotate", name, kind, value, func(versions []secretVersion) error {
		switch {
		case len(versions) == 0:
			return missing("rotating secret", name)
		case len(versions) >= MaxVersions:
			return attest.Errorf(attest.CodeConfig, "rotating secret", "Delete the secret and put it anew.",
				"secret %q has %d versions", name, len(versions))
		}
		return nil
	})
}

func missing(step, name string) error {
	return attest.Errorf(attest.CodeSecret, step, "See sesame secret list.", "there is no secret %q", name)
}

func (k *Keystore) add(ctx context.Context, by, action, name string, kind Kind, value attest.Secret,
	allowed func([]secretVersion) error) (string, error) {
	const step = "storing secret"
	if err := checkName(name); err != nil {
		return "", err
	}
	if _, fixed := k.options.Fixed[name]; fixed {
		return "", attest.Errorf(attest.CodeConfig, step, "Change the file.", "secret %q is of a file", name)
	}
	if err := kind.Check(value); err != nil {
		return "", err
	}
	ring, err := k.ring()
	if err != nil {
		return "", err
	}
	id := make([]byte, 16)
	if _, err := io.ReadFull(rand.Reader, id); err != nil {
		return "", attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	v := secretVersion{ID: hex.EncodeToString(id), Kind: string(kind), Created: k.options.Now().UTC().Truncate(time.Second)}
	sealed, err := ring.seal(address{k.id, name, v.ID, v.Kind}, value)
	if err != nil {
		return "", attest.Errorf(attest.CodeInternal, step, "", "%w", err)
	}
	err = k.administer(ctx, by, action, "secret "+name+", version "+v.ID+", kind "+v.Kind, func(w store.Writer, s *state) error {
		versions := s.catalog.Secrets[name]
		if slices.ContainsFunc(versions, func(o secretVersion) bool { return o.ID == v.ID }) {
			return nil // the commit before succeeded, and its answer was lost
		}
		if err := allowed(versions); err != nil {
			return err
		}
		if len(s.catalog.Secrets) >= MaxSecrets && len(versions) == 0 {
			return attest.Errorf(attest.CodeConfig, step, "", "there are %d secrets already", MaxSecrets)
		}
		for other := range s.catalog.Secrets {
			if other != name && equalFold(other, name) {
				return attest.Errorf(attest.CodeConfig, step, "Clients of the legacy wire could not tell them apart.",
					"there is a secret %q, which differs in case alone", other)
			}
		}
		s.catalog.Secrets[name] = append(versions, v)
		return w.Put(valueSpace, store.Row{Key: valueKey(name, v.ID), Value: sealed})
	})
	return v.ID, err
}

// Withdraw makes a version of a secret invalid and erases its value.
func (k *Keystore) Withdraw(ctx context.Context, by, name, version string) error {
	return k.administer(ctx, by, "secret.withdraw", "secret "+name+", version "+version, func(w store.Writer, s *state) error {
		versions := s.catalog.Secrets[name]
		i := slices.IndexFunc(versions, func(v secretVersion) bool { return v.ID == version })
		if i < 0 {
			return attest.Errorf(attest.CodeSecret, "withdrawing version", "See sesame secret list.", "secret %q has no version %.40q", name, version)
		}
		if versions[i].Withdrawn == nil {
			now := k.options.Now().UTC().Truncate(time.Second)
			versions[i].Withdrawn = &now
		}
		return w.Delete(valueSpace, valueKey(name, version))
	})
}

// Delete removes a secret with all its versions and its count.
func (k *Keystore) Delete(ctx context.Context, by, name string) error {
	return k.administer(ctx, by, "secret.delete", "secret "+name, func(w store.Writer, s *state) error {
		versions := s.catalog.Secrets[name]
		if len(versions) == 0 {
			return missing("deleting secret", name)
		}
		var keys [][]byte
		for _, v := range versions {
			keys = append(keys, valueKey(name, v.ID))
		}
		delete(s.catalog.Secrets, name)
		delete(s.head.Counts, name)
		return w.Delete(valueSpace, keys...)
	})
}
