package silent_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/sesame-init/sesame/internal/silent"
)

func TestOnlyAGivenLoggerIsHeard(t *testing.T) {
	const child = "SILENT_TEST_CHILD"
	if os.Getenv(child) != "" {
		silent.Or(nil).WithField("field", "canary").Error("canary")
		silent.Logger().Warn("canary")
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), child+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "canary") {
		t.Errorf("it says %q, %v", out, err)
	}
	var out bytes.Buffer
	given := logrus.New()
	given.SetOutput(&out)
	if silent.Or(given).Warn("word"); !strings.Contains(out.String(), "word") {
		t.Error("a given logger is not used")
	}
}
