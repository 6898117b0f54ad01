package version

import (
	"regexp"
	"testing"
	"time"
)

func TestVersionAndDateAreWellFormed(t *testing.T) {
	if !regexp.MustCompile(`^\d+\.\d+\.\d+(-dev)?$`).MatchString(Version) {
		t.Errorf("the version is %q", Version)
	}
	if got := Date(); got.Format(time.DateOnly) != date || got.Before(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("the date is %v", got)
	}
}
