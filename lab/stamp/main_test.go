package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStampWritesTodayAndCheckRefusesAnOldDate(t *testing.T) {
	name := filepath.Join(t.TempDir(), "version.go")
	text := "package version\n\nconst Version = \"1\"\n\nconst date = \"2020-01-02\"\n"
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	day := func(s string) time.Time {
		d, err := time.Parse(time.DateOnly, s)
		if err != nil {
			t.Fatal(err)
		}
		return d.Add(13 * time.Hour)
	}
	for now, fault := range map[string]string{"2020-01-01": "future", "2020-01-02": "", "2020-03-30": "", "2020-04-02": "90 days"} {
		err := run([]string{"-check", "-file", name}, day(now))
		if (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("on %s: error is %v, want %q", now, err, fault)
		}
	}
	if err := run([]string{"-file", name}, day("2020-04-02")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(text, "2020-01-02", "2020-04-02", 1); string(got) != want {
		t.Errorf("the file is now %q, want %q", got, want)
	}
}

func TestThisRepositoryHasADate(t *testing.T) {
	text, err := os.ReadFile("../../" + file)
	if err != nil || line.Find(text) == nil {
		t.Errorf("%s has no date: %v", file, err)
	}
}
