package keystore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sesame-init/sesame/attest"
	"github.com/sesame-init/sesame/internal/broker/keystore"
	"github.com/sesame-init/sesame/internal/broker/rootkey"
	"github.com/sesame-init/sesame/internal/broker/store/sqlite"
	"github.com/sesame-init/sesame/internal/privatefile"
	"github.com/sesame-init/sesame/internal/testenv"
)

// TestFullDiskReleasesNothing fills a real file system under the store, at every stage of a commit as it comes, and
// makes room again.
func TestFullDiskReleasesNothing(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m"); err != nil {
		testenv.Missing(t, "root", "mounting tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "broker.db"), privatefile.Rule{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	k := open(t, s, func(o *keystore.Options) { o.Root = rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")} })
	put(t, k, "known", "value")
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	for err == nil { // fill what is left
		_, err = ballast.Write(make([]byte, 4096))
	}
	n, failed := uint64(0), 0
	for range 400 { // the database has some free pages
		n++
		secrets, r, err := k.Release(t.Context(), decision(n, "known"))
		if err == nil {
			checkReceipt(t, k, r)
			continue
		}
		if attest.CodeOf(err) != attest.CodeInternal || secrets != nil || r.Entry != nil {
			t.Fatalf("released on a full disk: %v", err)
		}
		if failed++; failed == 5 {
			break
		}
	}
	if failed == 0 {
		t.Fatal("the disk did not get full")
	}
	recorded := uint64(len(entries(t, k)) - 1)
	if recorded != n-uint64(failed) || count(t, k, "known") != recorded {
		t.Errorf("%d released, %d recorded, %d counted", n-uint64(failed), recorded, count(t, k, "known"))
	}
	if err := ballast.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if values, _ := release(t, k, decision(n, "known")); values[0] != "value" {
		t.Error("it does not go on after there is room again")
	}
	if got := uint64(len(entries(t, k)) - 1); got != recorded+1 {
		t.Errorf("%d entries", got)
	}
}

// TestStoreHasNoSecretInPlainText searches the store's files, and everything that the keystore says.
func TestStoreHasNoSecretInPlainText(t *testing.T) {
	dir := t.TempDir()
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "broker.db"), privatefile.Rule{})
	if err != nil {
		t.Fatal(err)
	}
	k := open(t, s, func(o *keystore.Options) { o.Root = rootkey.File{Path: filepath.Join(t.TempDir(), "root.key")} })
	const canary = "canary-9d1f-secret"
	put(t, k, "a", canary)
	root := bytes.Clone(rootOf(t, k).Expose())
	_, _, err1 := k.Release(t.Context(), decision(1, "a", "missing"))
	_, err2 := k.Put(t.Context(), "admin", "a", keystore.Value, secret(canary))
	_, err3 := k.Put(t.Context(), "admin", "key", keystore.ImageKey, secret(canary))
	release(t, k, decision(2, "a"))
	said := ""
	for _, err := range []error{err1, err2, err3} {
		if err == nil {
			t.Fatal("no error")
		}
		said += err.Error() + attest.HintOf(err)
	}
	k.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		said += string(text)
	}
	if len(said) < 5_000 {
		t.Fatalf("only %d bytes were searched", len(said))
	}
	for _, canary := range [][]byte{[]byte(canary), root} {
		if bytes.Contains([]byte(said), canary) {
			t.Error("a secret stands there")
		}
	}
}
