package top

import (
	"fmt"
	"strings"

	"github.com/charmbracelet/x/ansi"

	"weir/internal/queue"
	"weir/internal/status"
)

const (
	// kept is how many points the charts look back, as many as weir's history has.
	kept = 300
	// roomForCharts is the height from which on there are charts.
	roomForCharts = 36
	chartLabel    = 11
	chartNow      = 10
)

// addPoint keeps a point for the charts.
func (m *Model) addPoint(p *status.Point) {
	if p == nil {
		return
	}
	m.points = append(m.points, *p)
	if extra := len(m.points) - kept; extra > 0 {
		m.points = append(m.points[:0], m.points[extra:]...)
	}
}

// chart is a figure of each second: its value, false if there was none, and how it
// is written.
type chart struct {
	label string
	value func(p *status.Point) (v float64, there bool)
	text  func(v float64) string
}

func rateOf(get func(p *status.Point) float64) func(p *status.Point) (float64, bool) {
	return func(p *status.Point) (float64, bool) { return get(p), true }
}

func p99Of(get func(p *status.Point) *status.Quantiles) func(p *status.Point) (float64, bool) {
	return func(p *status.Point) (float64, bool) {
		q := get(p)
		if q == nil {
			return 0, false
		}
		return q.P99, true
	}
}

func charts() []chart {
	return []chart{
		{"events/s", rateOf(func(p *status.Point) float64 { return p.Events }), figure},
		{"bytes/s", rateOf(func(p *status.Point) float64 { return p.Bytes }), func(v float64) string { return status.Amount(int64(v), queue.UnitBytes) }},
		{"conns/s", rateOf(func(p *status.Point) float64 { return p.Connections }), figure},
		{"beats/s", rateOf(func(p *status.Point) float64 { return p.Heartbeats }), figure},
		{"ack p99", p99Of(func(p *status.Point) *status.Quantiles { return p.Ack }), latency},
		{"commit p99", p99Of(func(p *status.Point) *status.Quantiles { return p.Commit }), latency},
	}
}

// charts draws the last minutes, two figures a line, each with the highest value that
// is drawn.
func (m *Model) charts() []string {
	if m.height < roomForCharts || len(m.points) == 0 {
		return nil
	}
	width := max((m.width-2)/2-chartLabel-chartNow-2, 8)
	var lines []string
	for i, c := range charts() {
		drawn, highest := c.draw(m.points, width)
		text := fmt.Sprintf("%s %s %*s", cell(c.label, chartLabel), blue(drawn), chartNow, ansi.Truncate("≤"+c.text(highest), chartNow, "…"))
		if i%2 == 0 {
			lines = append(lines, text)
		} else {
			lines[len(lines)-1] += "  " + text
		}
	}
	return append(lines, "")
}

// draw is the newest points in width columns, the newest one at the right.
func (c chart) draw(points []status.Point, width int) (drawn string, highest float64) {
	points = points[max(0, len(points)-width):]
	for i := range points {
		v, _ := c.value(&points[i])
		highest = max(highest, v)
	}
	var b strings.Builder
	b.WriteString(strings.Repeat(" ", width-len(points)))
	levels := []rune("▁▂▃▄▅▆▇█")
	for i := range points {
		v, there := c.value(&points[i])
		switch {
		case !there:
			b.WriteByte(' ')
		case highest <= 0:
			b.WriteRune(levels[0])
		default:
			b.WriteRune(levels[min(int(v/highest*float64(len(levels))), len(levels)-1)])
		}
	}
	return b.String(), highest
}
