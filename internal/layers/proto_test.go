package layers

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/sesame-init/sesame/attest/backend/aecs/wire"
	_ "github.com/sesame-init/sesame/attest/backend/grpcratls/wire"
	_ "github.com/sesame-init/sesame/client/tfserving"
	_ "github.com/sesame-init/sesame/internal/broker/admin/adminpb"
	"github.com/sesame-init/sesame/internal/testenv"
)

// TestEveryProtoFileIsRegisteredUnderItsPath: a program may link any of our packages with any of another module's. Two files of
// one name end it at its start, and a file under another name than its importers know is a placeholder without types.
func TestEveryProtoFileIsRegisteredUnderItsPath(t *testing.T) {
	git := testenv.Program(t, "git", "git", "git")
	out, err := exec.Command(git, "-C", "../..", "ls-files", "*.proto").Output()
	if err != nil {
		testenv.Missing(t, "git", err.Error())
	}
	paths := strings.Fields(string(out))
	if len(paths) < 7 {
		t.Errorf("git knows only these .proto files: %q", paths)
	}
	for _, path := range paths {
		if _, err := protoregistry.GlobalFiles.FindFileByPath(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if ours(file) && !slices.Contains(paths, file.Path()) {
			t.Errorf("%s is registered, and there is no such file", file.Path())
		}
		for i := range file.Imports().Len() {
			if imported := file.Imports().Get(i); imported.IsPlaceholder() {
				t.Errorf("%s imports %s, which no package registers", file.Path(), imported.Path())
			}
		}
		return true
	})
}

// ours tells by the option go_package.
func ours(file protoreflect.FileDescriptor) bool {
	options, ok := file.Options().(*descriptorpb.FileOptions)
	return ok && strings.HasPrefix(options.GetGoPackage(), module)
}
