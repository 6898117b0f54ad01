package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestTheMapThatIsCheckedInIsTrue(t *testing.T) {
	drawn := filepath.Join(t.TempDir(), "house.svg")
	if err := run([]string{"-root", "../..", "-w", drawn}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/house.svg")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(drawn)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the house is no longer as docs/house.svg has it: run make map")
	}
}

// room is a line of the list in docs/README.md: | `attest/dcap` | … |
var room = regexp.MustCompile("(?m)^\\| `((?:[a-z]+/)*[a-z]+)` \\| .+ \\|$")

func TestEveryRoomHasALine(t *testing.T) {
	page, err := os.ReadFile("../../docs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, house, _ := strings.Cut(string(page), "\n## The house\n")
	var lines []string
	for _, found := range room.FindAllStringSubmatch(house, -1) {
		lines = append(lines, found[1])
	}
	out, err := exec.Command("go", "list", "-C", "../..", "-tags", "plainlinux", "-f", "{{if .GoFiles}}{{.ImportPath}}{{end}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	rooms := slices.DeleteFunc(strings.Fields(strings.ReplaceAll(string(out), module, "")), func(name string) bool {
		return strings.HasPrefix(name, "lab/")
	})
	for _, name := range rooms {
		if !slices.Contains(lines, name) {
			t.Errorf("docs/README.md has no line for %s", name)
		}
	}
	for i, name := range lines {
		if !slices.Contains(rooms, name) {
			t.Errorf("docs/README.md has a line for %s, which is no package", name)
		}
		if slices.Index(lines, name) != i {
			t.Errorf("docs/README.md has two lines for %s", name)
		}
	}
}

func TestLabReadmeNamesEveryRoomOfTheLab(t *testing.T) {
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	house, err := survey("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range house["lab"].rooms {
		if !strings.Contains(string(page), "`"+name+"`") && !strings.Contains(string(page), "`"+name+"/") {
			t.Errorf("lab/README.md has no line for %s", name)
		}
	}
}

// small is a house of three floors.
func small() map[string]*wing {
	return map[string]*wing{
		"top":    {rooms: []string{"a", "b"}, imports: []string{"bottom", "middle"}},
		"middle": {imports: []string{"bottom"}},
		"bottom": {},
	}
}

var floors = map[string]place{"top": {"", 0, 0, 2}, "middle": {"", 1, 0, 1}, "bottom": {"", 2, 0, 2}}

func TestAnImportThatOthersImplyHasNoArrow(t *testing.T) {
	svg, err := draw(small(), floors)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		"<title>top imports middle<":    true,
		"<title>middle imports bottom<": true,
		"<title>top imports bottom<":    false,
		">also imports bottom<":         true,
		">a  b<":                        true,
	} {
		if got := bytes.Contains(svg, []byte(text)); got != want {
			t.Errorf("the picture has %q: %v, want %v", text, got, want)
		}
	}
}

func TestAnArrowGoesAroundTheBoxesBetween(t *testing.T) {
	house := small()
	house["middle"].imports = nil
	svg, err := draw(house, floors)
	if err != nil {
		t.Fatal(err)
	}
	// top imports middle down the first column, and bottom down the second.
	for _, path := range []string{`d="M97 `, `d="M267 `} {
		if !bytes.Contains(svg, []byte(path)) {
			t.Errorf("no arrow begins %s:\n%s", path, svg)
		}
	}
}

func TestWhatHasNoPlaceIsRefused(t *testing.T) {
	up := small()
	up["bottom"].imports = []string{"middle"}
	stranger := small()
	stranger["new"] = &wing{}
	gone := small()
	delete(gone, "top")
	for want, house := range map[string]map[string]*wing{
		"bottom imports middle: this arrow points up": up,
		"new/ has no place":                           stranger,
		"a place for top/, which has no packages":     gone,
	} {
		if _, err := draw(house, floors); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}
