// Command map draws docs/house.svg, the map of the house: a box for each top-level folder with Go code, and for the large ones
// below internal/, and an arrow for each import between two of them.
//
//	map -w docs/house.svg
//
// What is drawn comes from "go list": folders, the rooms in them, imports. Only places and titles are in this program. It fails
// if an import would point up, or if a folder has no place here: such a change of the house is to be decided, not drawn.
// Tests do not count, nor do the small tools' imports of package attest itself, whose refusals all speak.
package main

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"html"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const module = "github.com/sesame-init/sesame/"

// place is where a wing is drawn. Rows count from the top, columns from the left.
type place struct {
	title       string
	row         int
	column, end int // the columns that it covers, the second one excluded
}

var places = map[string]place{
	"lab":                {"proves the rest, or runs it without hardware; never shipped", 0, 0, 6},
	"cmd":                {"the programs: the key broker, and the tool of operators and developers", 1, 1, 5},
	"internal/packaging": {"images, charts, keys", 2, 0, 3},
	"client":             {"asks model servers", 2, 4, 6},
	"internal/occlum":    {"what Occlum needs", 3, 0, 2},
	"internal/broker":    {"holds secrets, and releases them", 4, 2, 4},
	"init":               {"the boot of a workload", 4, 0, 2},
	"internal/config":    {"the measured config of init", 5, 0, 2},
	"fs":                 {"the file systems of a boot: roots, volumes, secret files", 6, 0, 4},
	"attest":             {"evidence: made, verified, appraised, and exchanged for secrets", 7, 0, 6},
	"internal":           {"small tools that all share", 8, 0, 6},
}

// annexes are rooms below internal/ that belong to another wing: they are there so that other modules cannot import them.
var annexes = map[string]string{
	"aecs": "attest", "clock": "attest", "keywrap": "attest", "kind": "attest", "raconfig": "attest", "reportdata": "attest",
	"report": "client",
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "map: "+err.Error())
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("map", flag.ContinueOnError)
	root := flags.String("root", ".", "`folder` of the module")
	name := flags.String("w", "docs/house.svg", "`file` to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	house, err := survey(*root)
	if err != nil {
		return err
	}
	svg, err := draw(house, places)
	if err != nil {
		return err
	}
	return os.WriteFile(*name, svg, 0o644)
}

// wing is a top-level folder, or one below internal/ that has a place of its own.
type wing struct {
	rooms   []string // the folders in it that have packages, sorted
	imports []string // the other wings that its packages import, sorted
}

// locate splits the path of a package into its wing and the room in it, which is empty for the wing's own package.
func locate(path string) (name, room string) {
	parts := strings.Split(path, "/")
	if len(parts) > 1 && parts[0] == "internal" && annexes[parts[1]] != "" {
		return annexes[parts[1]], "internal/" + parts[1]
	}
	n := 1
	if len(parts) > 1 {
		if _, wing := places[parts[0]+"/"+parts[1]]; wing {
			n = 2
		}
	}
	if len(parts) > n {
		room = parts[n]
	}
	return strings.Join(parts[:n], "/"), room
}

// survey asks "go list" about the module in root, as it is built for Linux with and without the attesters of plain Linux.
func survey(root string) (map[string]*wing, error) {
	house := map[string]*wing{}
	for _, tags := range []string{"", "plainlinux"} {
		list := exec.Command("go", "list", "-C", root, "-tags", tags, "-f", `{{if .GoFiles}}{{.ImportPath}} {{join .Imports " "}}{{end}}`, "./...")
		list.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64")
		out, err := list.Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return nil, fmt.Errorf("go list: %s", bytes.TrimSpace(exit.Stderr))
		} else if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(out)) {
			packages := strings.Fields(line)
			if len(packages) == 0 {
				continue
			}
			name, room := locate(strings.TrimPrefix(packages[0], module))
			w := house[name]
			if w == nil {
				w = &wing{}
				house[name] = w
			}
			if room != "" {
				w.rooms = append(w.rooms, room)
			}
			for _, imported := range packages[1:] {
				if local, ours := strings.CutPrefix(imported, module); ours {
					if name == "internal" && local == "attest" {
						continue // the vocabulary of refusals, which even small tools speak
					}
					if other, _ := locate(local); other != name {
						w.imports = append(w.imports, other)
					}
				}
			}
		}
	}
	for _, w := range house {
		slices.Sort(w.rooms)
		w.rooms = slices.Compact(w.rooms)
		slices.Sort(w.imports)
		w.imports = slices.Compact(w.imports)
	}
	return house, nil
}

// Sizes in pixels.
const (
	margin      = 24
	columnWidth = 146
	columnGap   = 24
	rowGap      = 46
	padding     = 14
	lineHeight  = 18
	glyph       = 7.3 // the width of a monospaced letter
)

// box is a wing with its place in the picture.
type box struct {
	name          string
	title         string
	lines         []string // of rooms
	also          []string // imports that have no arrow
	x, y          int
	width, height int
	row           int
}

// arrow leads from the lower side of a box to the upper side of another.
type arrow struct {
	from, to *box
	x1, x2   int
}

// draw makes the picture. An import that a way along other arrows already shows gets no arrow, and is named in the box.
func draw(house map[string]*wing, places map[string]place) ([]byte, error) {
	boxes := map[string]*box{}
	var arrows []*arrow
	names := slices.Sorted(maps.Keys(house))
	for _, name := range names {
		p, ok := places[name]
		if !ok {
			return nil, fmt.Errorf("%s/ has no place on the map: give it one in lab/map", name)
		}
		columns := p.end - p.column
		b := &box{name: name, title: p.title, row: p.row, x: margin + p.column*(columnWidth+columnGap), width: columns*(columnWidth+columnGap) - columnGap}
		b.lines = wrap(house[name].rooms, int(float64(b.width-2*padding)/glyph))
		b.height = 2*padding + lineHeight*(2+len(b.lines))
		boxes[name] = b
	}
	for name := range places {
		if house[name] == nil {
			return nil, fmt.Errorf("lab/map has a place for %s/, which has no packages", name)
		}
	}
	for _, name := range names {
		b := boxes[name]
		for _, other := range house[name].imports {
			switch {
			case boxes[other].row <= b.row:
				return nil, fmt.Errorf("%s imports %s: this arrow points up. Remove the import, or give them other places in lab/map", name, other)
			case implied(house, name, other):
				b.also = append(b.also, other)
			default:
				arrows = append(arrows, &arrow{from: b, to: boxes[other]})
			}
		}
		if b.also != nil {
			b.height += lineHeight
		}
	}

	// Boxes of a row have one height.
	y := margin
	rows := 0
	for _, p := range places {
		rows = max(rows, p.row+1)
	}
	for row := range rows {
		height := 0
		for _, b := range boxes {
			if b.row == row {
				height = max(height, b.height)
			}
		}
		for _, b := range boxes {
			if b.row == row {
				b.y, b.height = y, height
			}
		}
		y += height + rowGap
	}
	attach(boxes, arrows)
	return render(boxes, arrows, y-rowGap+margin), nil
}

// implied reports whether another import of from reaches to.
func implied(house map[string]*wing, from, to string) bool {
	seen := map[string]bool{} // a circle, which draw refuses
	var reaches func(at string) bool
	reaches = func(at string) bool {
		if seen[at] {
			return false
		}
		seen[at] = true
		return at == to || slices.ContainsFunc(house[at].imports, reaches)
	}
	return slices.ContainsFunc(house[from].imports, func(at string) bool { return at != to && reaches(at) })
}

// wrap breaks words into lines of at most width letters, two spaces between words.
func wrap(words []string, width int) []string {
	var lines []string
	for _, word := range words {
		if n := len(lines) - 1; n >= 0 && len(lines[n])+2+len(word) <= width {
			lines[n] += "  " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

// attach spreads the ends of the arrows over the sides of their boxes, so that each is as straight as it can be.
func attach(boxes map[string]*box, arrows []*arrow) {
	for _, b := range boxes {
		var out []*arrow
		for _, a := range arrows {
			if a.from == b {
				out = append(out, a)
			}
		}
		slices.SortFunc(out, func(a, c *arrow) int {
			return cmp.Or(cmp.Compare(a.to.x+a.to.width/2, c.to.x+c.to.width/2), strings.Compare(a.to.name, c.to.name))
		})
		for _, a := range out {
			a.x1 = way(boxes, a)
		}
		spread(out, func(a *arrow) *int { return &a.x1 }, b)
	}
	for _, b := range boxes {
		var in []*arrow
		for _, a := range arrows {
			if a.to == b {
				a.x2 = min(max(a.x1, b.x+padding), b.x+b.width-padding)
				in = append(in, a)
			}
		}
		slices.SortFunc(in, func(a, c *arrow) int {
			return cmp.Or(cmp.Compare(a.x1, c.x1), strings.Compare(a.from.name, c.from.name))
		})
		spread(in, func(a *arrow) *int { return &a.x2 }, b)
	}
}

// way is the middle of the column in which an arrow can go down from one box to the other, clear of the boxes between them. Of
// several it is the one nearest to the middle of what the two boxes have in common.
func way(boxes map[string]*box, a *arrow) int {
	left, right := max(a.from.x, a.to.x), min(a.from.x+a.from.width, a.to.x+a.to.width)
	best, distance := (left+right)/2, -1
	for x := a.from.x + columnWidth/2; x < a.from.x+a.from.width; x += columnWidth + columnGap {
		free := x >= left && x <= right
		for _, b := range boxes {
			if b.row > a.from.row && b.row < a.to.row && x > b.x-columnGap && x < b.x+b.width+columnGap {
				free = false
			}
		}
		if d := max(x-(left+right)/2, (left+right)/2-x); free && (distance < 0 || d < distance) {
			best, distance = x, d
		}
	}
	return min(max(best, a.from.x+padding), a.from.x+a.from.width-padding)
}

// spread moves ends apart that are nearer than a letter or two, to the right first and back if the box ends there.
func spread(arrows []*arrow, end func(*arrow) *int, b *box) {
	const apart = 30
	for i := 1; i < len(arrows); i++ {
		*end(arrows[i]) = max(*end(arrows[i]), *end(arrows[i-1])+apart)
	}
	limit := b.x + b.width - padding
	for _, a := range slices.Backward(arrows) {
		*end(a) = min(*end(a), limit)
		limit = *end(a) - apart
	}
}

const style = `
    svg { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
    .page { fill: #ffffff; stroke: #d1d9e0; }
    .box { fill: #eef3fa; stroke: #7f93ad; }
    .lab { fill: #ffffff; stroke-dasharray: 6 4; }
    .name { font-size: 17px; font-weight: 600; fill: #14243a; }
    .title { font-size: 13px; fill: #3d4d63; }
    .rooms { font-size: 12px; font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #14243a; white-space: pre; }
    .also { font-size: 12px; font-style: italic; fill: #5a6b82; }
    .arrow { fill: none; stroke: #47617f; stroke-width: 1.6; }
    .head { fill: #47617f; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; }
      .box { fill: #18222f; stroke: #5c7390; }
      .lab { fill: #0d1117; }
      .name, .rooms { fill: #e6edf3; }
      .title { fill: #b3c0cf; }
      .also { fill: #93a1b3; }
      .arrow { stroke: #8fb0d6; }
      .head { fill: #8fb0d6; }
    }
`

func render(boxes map[string]*box, arrows []*arrow, height int) []byte {
	width := 0
	for _, b := range boxes {
		width = max(width, b.x+b.width+margin)
	}
	var svg bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&svg, format+"\n", args...) }
	line(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="The map of the house: folders and the imports between them">`,
		width, height, width, height)
	line(`  <!-- Made by "make map". -->`)
	line(`  <style>%s  </style>`, style)
	line(`  <defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path class="head" d="M0 0L10 5L0 10z"/></marker></defs>`)
	line(`  <rect class="page" x="0.5" y="0.5" width="%d" height="%d" rx="10"/>`, width-1, height-1)
	for _, name := range slices.Sorted(maps.Keys(boxes)) {
		b := boxes[name]
		class := "box"
		if name == "lab" {
			class = "box lab"
		}
		line(`  <rect class="%s" x="%d" y="%d" width="%d" height="%d" rx="8"/>`, class, b.x, b.y, b.width, b.height)
		x, y := b.x+padding, b.y+padding+13
		line(`  <text class="name" x="%d" y="%d">%s/</text>`, x, y, html.EscapeString(name))
		y += lineHeight
		line(`  <text class="title" x="%d" y="%d">%s</text>`, x, y, html.EscapeString(b.title))
		for _, rooms := range b.lines {
			y += lineHeight
			line(`  <text class="rooms" xml:space="preserve" x="%d" y="%d">%s</text>`, x, y, html.EscapeString(rooms))
		}
		if b.also != nil {
			y += lineHeight
			line(`  <text class="also" x="%d" y="%d">also imports %s</text>`, x, y, html.EscapeString(strings.Join(b.also, ", ")))
		}
	}
	for _, a := range arrows {
		y1, y2 := a.from.y+a.from.height, a.to.y-1
		bend := rowGap * 3 / 4
		line(`  <path class="arrow" marker-end="url(#head)" d="M%d %dC%d %d %d %d %d %d"><title>%s imports %s</title></path>`,
			a.x1, y1, a.x1, y1+bend, a.x2, y2-bend, a.x2, y2, a.from.name, a.to.name)
	}
	line(`</svg>`)
	return svg.Bytes()
}
