package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// The drawing's size and margins, in the units of its view box.
const (
	width, height           = 760, 280
	left, right, top, below = 64, 24, 12, 40
)

type point struct{ x, y float64 }

// plot is a line plot from zero upwards, laid out for the page's template.
type plot struct {
	Title, XTitle, YTitle string
	Lines                 []line
	XTicks, YTicks        []tick
	Width, Height         int
	Left, Right           int
	Top, Bottom           int

	marks []tick // of the x axis, before it is scaled
}

type line struct {
	Colour string
	Dashed bool
	Points string // of an SVG polyline

	points []point
}

type tick struct {
	At   float64
	Text string
}

func newPlot(title, x, y string) *plot {
	return &plot{Title: title, XTitle: x, YTitle: y, Width: width, Height: height,
		Left: left, Right: width - right, Top: top, Bottom: height - below}
}

func (p *plot) line(colour string, dashed bool, points []point) {
	if len(points) > 0 {
		p.Lines = append(p.Lines, line{Colour: colour, Dashed: dashed, points: points})
	}
}

// mark gives the x axis a tick of its own; without any it has round numbers.
func (p *plot) mark(x, label float64) {
	text := strconv.FormatFloat(label, 'f', -1, 64)
	if !slices.ContainsFunc(p.marks, func(t tick) bool { return t.Text == text }) {
		p.marks = append(p.marks, tick{x, text})
	}
}

// finish scales the plot. It reports whether there is anything to see.
func (p *plot) finish() bool {
	if len(p.Lines) == 0 {
		return false
	}
	xMax, yMax := 1.0, 0.0
	for _, l := range p.Lines {
		for _, q := range l.points {
			xMax, yMax = max(xMax, q.x), max(yMax, q.y)
		}
	}
	step := round(max(yMax, 1e-3) / 5)
	yMax = step * math.Ceil(max(yMax, 1e-3)/step)
	x := func(v float64) float64 { return left + v/xMax*float64(p.Right-p.Left) }
	y := func(v float64) float64 { return float64(p.Bottom) - v/yMax*float64(p.Bottom-p.Top) }
	for v := 0.0; v <= yMax+step/2; v += step {
		p.YTicks = append(p.YTicks, tick{y(v), strconv.FormatFloat(v, 'g', 4, 64)})
	}
	if p.marks == nil {
		step := max(round(xMax/10), 1)
		for v := 0.0; v <= xMax; v += step {
			p.marks = append(p.marks, tick{v, strconv.FormatFloat(v, 'f', -1, 64)})
		}
	}
	for _, m := range p.marks {
		p.XTicks = append(p.XTicks, tick{x(m.At), m.Text})
	}
	for i := range p.Lines {
		var b strings.Builder
		for _, q := range p.Lines[i].points {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(q.x), y(q.y))
		}
		p.Lines[i].Points = strings.TrimSpace(b.String())
	}
	return true
}

// round is the next number of 1, 2 or 5 times a power of ten that is not smaller.
func round(v float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if v <= m*power*(1+1e-9) {
			return m * power
		}
	}
	return 10 * power
}
