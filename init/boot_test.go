package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/attest"
	sesamefs "github.com/sesame-init/sesame/fs"
	"github.com/sesame-init/sesame/fs/sefs"
	"github.com/sesame-init/sesame/init/internal/stop"
	"github.com/sesame-init/sesame/internal/config"
)

// fakeBackend hands out fixed secrets and counts what was asked.
type fakeBackend struct {
	secrets map[string]string
	err     error
	at      func() // told of a call
	out     map[string]attest.Secret
}

func (f *fakeBackend) Name() string { return "fake" }

func (f *fakeBackend) Fetch(_ context.Context, names []string) (map[string]attest.Secret, error) {
	if f.at != nil {
		f.at()
	}
	if f.err != nil {
		return nil, f.err
	}
	f.out = map[string]attest.Secret{}
	for _, name := range names {
		f.out[name] = attest.NewSecret([]byte(f.secrets[name]))
	}
	return f.out, nil
}

// recorder is a mounter that records its calls and fails at one of them.
type recorder struct {
	calls []string
	fail  string
	at    func(call string) // told of each call
	keys  []*sefs.Key
}

func (r *recorder) call(text string) error {
	r.calls = append(r.calls, text)
	if r.at != nil {
		r.at(text)
	}
	if text == r.fail {
		return attest.Errorf(attest.CodeMount, "mounting", "hint", "input/output error")
	}
	return nil
}

func (r *recorder) MountRoot(_ context.Context, root sesamefs.Root) error {
	var key []byte
	if root.Key != nil {
		key = root.Key[:]
		r.keys = append(r.keys, root.Key)
	}
	return r.call(fmt.Sprintf("root key=%x entry=%s", key, root.EntryPoint))
}

func (r *recorder) MountVolume(_ context.Context, v sesamefs.Volume) error {
	r.keys = append(r.keys, v.Key)
	return r.call(fmt.Sprintf("volume %s key=%x", v.Target, v.Key[:]))
}
func (r *recorder) MountMemory(target string) error { return r.call("memory " + target) }
func (r *recorder) Unmount(target string) error     { return r.call("unmount " + target) }

const (
	imageKey  = "01-02-03-04-05-06-07-08-09-0a-0b-0c-0d-0e-0f-10\n"
	modelKey  = "1112131415161718191a1b1c1d1e1f20"
	rootCall  = "root key=0102030405060708090a0b0c0d0e0f10 entry=/bin/server"
	modelCall = "volume /models key=1112131415161718191a1b1c1d1e1f20"
)

func newBoot(t *testing.T) (*boot, *fakeBackend, *recorder, *strings.Builder) {
	t.Helper()
	backend := &fakeBackend{secrets: map[string]string{"image_key": imageKey, "model_key": modelKey, "ssl_config": "canary-5d1c"}}
	mounter := &recorder{}
	var out strings.Builder
	log := logrus.New()
	log.SetOutput(&out)
	return &boot{
		config: &config.Config{
			Timeout: config.Duration(1 << 40),
			Root:    config.Root{Key: "image_key", Upper: "temporary"},
			App:     &config.App{Path: "/opt/server", EntryPoint: "/bin/server"},
			Volumes: []config.Volume{{Source: "v", Target: "/models", Key: "model_key", MAC: sefs.MAC{1}}},
			Secrets: []config.SecretFile{
				{Name: "ssl_config", Path: "/etc/tf_ssl.cfg", Mode: 0o400},
				{Name: "ssl_config", Path: "/run/secrets/again", Mode: 0o400},
			},
		},
		backend: backend, mounter: mounter, log: log, prefix: t.TempDir(),
	}, backend, mounter, &out
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestBootMountsInOrderThenWritesSecretsThenWipes(t *testing.T) {
	b, backend, mounter, out := newBoot(t)
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{rootCall, modelCall, "memory /run/secrets"}; !slices.Equal(mounter.calls, want) {
		t.Errorf("calls are %q, want %q", mounter.calls, want)
	}
	if got := files(t, b.prefix); !slices.Equal(got, []string{"/etc/tf_ssl.cfg", "/run/secrets/again"}) {
		t.Errorf("files are %q", got)
	}
	for name, s := range backend.out {
		if s.Len() != 0 {
			t.Errorf("%s is not wiped", name)
		}
	}
	for _, key := range mounter.keys {
		if *key != (sefs.Key{}) {
			t.Error("a mount key is not wiped")
		}
	}
	for _, secret := range []string{"canary", "0102030405", "01-02-03", "11121314"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the log holds %q:\n%s", secret, out)
		}
	}
	for _, phase := range []string{"keys released", "root mounted", "volume mounted", "secret files written"} {
		if !strings.Contains(out.String(), phase) || !strings.Contains(out.String(), "took=") {
			t.Errorf("the log does not tell of %q:\n%s", phase, out)
		}
	}
}

func TestFailedBootLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*boot, *fakeBackend, *recorder)
		code   attest.Code
		calls  []string
	}{
		"denied": {func(_ *boot, f *fakeBackend, _ *recorder) {
			f.err = attest.Errorf(attest.CodeDenied, "fetching", "", "no")
		}, attest.CodeDenied, nil},
		"key is no key": {func(_ *boot, f *fakeBackend, _ *recorder) { f.secrets["image_key"] = "too short" },
			attest.CodeSecret, nil},
		"root does not open": {func(_ *boot, _ *fakeBackend, r *recorder) { r.fail = rootCall },
			attest.CodeMount, []string{rootCall}},
		"volume does not open": {func(_ *boot, _ *fakeBackend, r *recorder) { r.fail = modelCall },
			attest.CodeMount, []string{rootCall, modelCall}},
		"memory cannot be mounted": {func(_ *boot, _ *fakeBackend, r *recorder) { r.fail = "memory /run/secrets" },
			attest.CodeMount, []string{rootCall, modelCall, "memory /run/secrets", "unmount /models"}},
		"second secret cannot be written": {func(b *boot, _ *fakeBackend, _ *recorder) {
			b.config.Secrets[1].Path = "/etc/tf_ssl.cfg/below-a-file"
		}, attest.CodeSecret, []string{rootCall, modelCall, "unmount /models"}},
	} {
		b, backend, mounter, out := newBoot(t)
		c.change(b, backend, mounter)
		err := b.run(t.Context())
		if attest.CodeOf(err) != c.code {
			t.Errorf("%s: error %v, want code %s", name, err, c.code)
		}
		if !slices.Equal(mounter.calls, c.calls) {
			t.Errorf("%s: calls are %q, want %q", name, mounter.calls, c.calls)
		}
		if left := files(t, b.prefix); len(left) > 0 {
			t.Errorf("%s: left behind %q", name, left)
		}
		if strings.Contains(out.String()+err.Error(), "canary") {
			t.Errorf("%s: a secret was printed", name)
		}
		for secret, s := range backend.out {
			if s.Len() != 0 {
				t.Errorf("%s: %s is not wiped", name, secret)
			}
		}
	}
}

// TestSignalInAnyPhaseEndsTheBoot: whatever is under way is finished, and then taken back.
func TestSignalInAnyPhaseEndsTheBoot(t *testing.T) {
	for _, phase := range []string{"fetch", rootCall, modelCall, "memory /run/secrets"} {
		b, backend, mounter, _ := newBoot(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		signal := func() { cancel(stop.By(syscall.SIGTERM)) }
		mounter.at = func(call string) {
			if call == phase {
				signal()
			}
		}
		if phase == "fetch" {
			backend.at = signal
		}
		err := b.run(ctx)
		if attest.CodeOf(err) != attest.CodeStopped || !strings.Contains(err.Error(), "terminated") {
			t.Errorf("%s: error %v", phase, err)
		}
		if i := slices.Index(mounter.calls, phase); phase != "fetch" && slices.ContainsFunc(mounter.calls[i+1:],
			func(call string) bool { return !strings.HasPrefix(call, "unmount ") }) {
			t.Errorf("%s: it went on to %q", phase, mounter.calls[i+1:])
		}
		if left := files(t, b.prefix); len(left) > 0 {
			t.Errorf("%s: left behind %q", phase, left)
		}
		for name, s := range backend.out {
			if s.Len() != 0 {
				t.Errorf("%s: %s is not wiped", phase, name)
			}
		}
	}
}

func TestBackendNoneAsksForNothing(t *testing.T) {
	mounter := &recorder{}
	log := logrus.New()
	log.SetOutput(io.Discard)
	b := &boot{config: &config.Config{Backend: "none"}, mounter: mounter, log: log}
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(mounter.calls, []string{"root key= entry="}) {
		t.Errorf("calls are %q", mounter.calls)
	}
}
