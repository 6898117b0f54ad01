package fuse_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sesame-init/sesame/internal/testenv"
)

// elsewhere are the tests that are run again with other rights.
const elsewhere = "^(TestMountAndFSSayTheSame|TestTamperingIsEIOAndOneLine|TestUnmountDetachesWhatIsInUse)$"

func runElsewhere(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if passed := strings.Count("\n"+string(out), "\n--- PASS"); err != nil || passed != 3 {
		t.Errorf("%v, %d tests passed\n%s", err, passed, out)
	}
}

func TestMountInAUserNamespace(t *testing.T) {
	testenv.FUSE(t)
	testenv.UserNamespaces(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	runElsewhere(t, exec.Command("unshare", "-Urm", self, "-test.v", "-test.run", elsewhere))
}

// TestMountWithoutRightsUsesFusermount mounts as a user who may open /dev/fuse and nothing more.
func TestMountWithoutRightsUsesFusermount(t *testing.T) {
	testenv.FUSE(t)
	testenv.Root(t)
	testenv.Program(t, "fuse", "fusermount3", "fuse3")
	dir, err := os.MkdirTemp("", "fusermount")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	copyProgram(t, program)
	// A device node of its own in a mount namespace of its own, since that of the machine may be root's.
	script := `mknod -m 666 "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse && cd "$0" &&
		exec setpriv --reuid 65534 --regid 65534 --clear-groups ./test -test.v -test.run "$1"`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, dir, elsewhere)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	runElsewhere(t, cmd)
}

// TestMountInAContainer mounts in a container that has the device, the capability, and the limits of a container
// otherwise. Its root is empty but for the test and the libraries of the machine.
func TestMountInAContainer(t *testing.T) {
	testenv.FUSE(t)
	testenv.Root(t)
	podman := testenv.Program(t, "podman", "podman", "podman")
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, name := range []string{"usr", "tmp", "proc", "dev", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	copyProgram(t, filepath.Join(root, "test"))
	run := func(tests string) *exec.Cmd {
		return exec.Command(podman, "--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run"),
			"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc",
			"run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
			"--cap-add", "SYS_ADMIN", "--device", "/dev/fuse", "-v", "/usr:/usr:ro", "--rootfs", root,
			"/test", "-test.v", "-test.run", tests)
	}
	if out, err := run("^$").CombinedOutput(); err != nil {
		testenv.Missing(t, "podman", "it cannot run a container: "+err.Error()+" "+string(out))
	}
	runElsewhere(t, run(elsewhere))
}

func copyProgram(t *testing.T, name string) {
	t.Helper()
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
