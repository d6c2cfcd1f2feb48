package top

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"weir/internal/alert"
	"weir/internal/doctor"
	"weir/internal/queue"
	"weir/internal/status"
)

// Columns for names; what is longer is cut.
const (
	nameWidth   = 16 // of a queue
	matchWidth  = 12
	senderWidth = 23
)

// The screen's few styles. The terminal library takes colours away where the
// terminal has none, or NO_COLOR is set.
func style(code, s string) string { return "\x1b[" + code + "m" + s + "\x1b[m" }
func bold(s string) string        { return style("1", s) }
func dim(s string) string         { return style("2", s) }
func red(s string) string         { return style("1;31", s) }
func yellow(s string) string      { return style("33", s) }
func blue(s string) string        { return style("34", s) }

// screen is the whole of it, of exactly height lines of at most width columns.
func (m *Model) screen() string {
	if m.width < 1 || m.height < 1 {
		return ""
	}
	lines := []string{m.title()}
	if m.frame != nil {
		lines = append(lines, m.rates()...)
		lines = append(lines, m.charts()...)
		lines = append(lines, m.notices()...)
		lines = append(lines, "")
		lines = append(lines, m.queues()...)
		lines = append(lines, m.buffers()...)
		lines = append(lines, m.outputs()...)
		found := m.findings()
		lines = append(lines, m.senders(m.height-1-len(lines)-len(found))...)
		lines = append(lines, found...)
	}
	last := max(m.height-1, 0)
	if len(lines) > last {
		lines = lines[:last]
	}
	for len(lines) < last {
		lines = append(lines, "")
	}
	lines = append(lines, dim("q quit   sort: "+keys()))
	for i, l := range lines {
		lines[i] = ansi.Truncate(strings.TrimRight(l, " "), m.width, "…")
	}
	return strings.Join(lines, "\n")
}

func keys() string {
	var parts []string
	for _, o := range orders {
		parts = append(parts, o.key+" "+o.name)
	}
	return strings.Join(parts, "  ")
}

// title says which weir it is, and since when nothing has come from it.
func (m *Model) title() string {
	if m.frame == nil {
		if m.lost != nil {
			return bold("weir top") + "  " + red("no connection: "+status.Printable(m.lost.Error()))
		}
		return bold("weir top") + "  connecting"
	}
	s := m.frame.Snapshot
	if m.lost != nil {
		return bold("weir") + "  " + red(fmt.Sprintf("no figures since %s (%s): %s", m.received.Format(time.TimeOnly),
			status.Age(m.now.Sub(m.received).Truncate(time.Second)), status.Printable(m.lost.Error())))
	}
	state := "ready"
	if !s.Ready() {
		state = red("NOT READY")
	}
	line := fmt.Sprintf("%s %s, pid %d, up %s, %s", bold("weir"), status.Printable(s.Version), s.PID, status.Age(s.Now.Sub(s.Started).Truncate(time.Second)), state)
	for _, l := range s.Listeners {
		line += fmt.Sprintf("   %s backlog %d/%d", status.Printable(l.Name), l.Granted, l.Asked)
	}
	return line
}

func (m *Model) rates() []string {
	p := m.frame.Point
	if p == nil {
		p = &status.Point{}
	}
	return []string{
		fmt.Sprintf("%s events/s  %s/s  %s conns/s  %s beats/s  %s dropped/s", bold(figure(p.Events)), bold(status.Amount(int64(p.Bytes), queue.UnitBytes)),
			bold(figure(p.Connections)), bold(figure(p.Heartbeats)), alarming(p.Dropped)),
		"ack " + quantiles(p.Ack) + "   commit " + quantiles(p.Commit),
	}
}

func alarming(rate float64) string {
	if rate > 0 {
		return red(figure(rate))
	}
	return bold("0")
}

// figure writes a rate with the digits that matter.
func figure(v float64) string {
	if v > 0 && v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func quantiles(q *status.Quantiles) string {
	if q == nil {
		return dim("p50 -  p99 -")
	}
	return fmt.Sprintf("p50 %s  p99 %s", bold(latency(q.P50)), bold(latency(q.P99)))
}

func latency(seconds float64) string {
	switch {
	case seconds < 1e-3:
		return fmt.Sprintf("%.0fµs", seconds*1e6)
	case seconds < 1:
		return fmt.Sprintf("%.1fms", seconds*1e3)
	default:
		return fmt.Sprintf("%.2fs", seconds)
	}
}

// notices are what needs attention, at most a quarter of the screen.
func (m *Model) notices() []string {
	s := m.frame.Snapshot
	// Alerts are looked for each second; the first frame may be before that.
	told := func(name, subject string) bool {
		return slices.ContainsFunc(s.Alerts, func(a status.Alert) bool {
			return a.Until == nil && a.Name == name && (subject == "" || a.Subject == subject)
		})
	}
	var lines []string
	if !told(alert.NotReady, "") {
		for _, p := range s.Problems {
			lines = append(lines, red("! "+status.Printable(p)))
		}
	}
	for _, l := range s.Listeners {
		if l.Granted < l.Asked && !told(alert.BacklogShort, l.Name) {
			lines = append(lines, m.notice(fmt.Sprintf("%s: backlog %d of %d asked", l.Name, l.Granted, l.Asked), "", l.Mend)...)
		}
	}
	for _, a := range s.Alerts {
		if a.Until != nil {
			continue
		}
		lines = append(lines, m.notice(a.Subject+": "+a.Message, a.Since.Local().Format(time.TimeOnly), a.Mend)...)
	}
	if most := max(m.height/4, 1); len(lines) > most {
		more := len(lines) - most + 1
		lines = append(lines[:most-1], red(fmt.Sprintf("! and %d more; see weir status", more)))
	}
	return lines
}

// notice is one line, or two if the command that mends it needs a line of its own.
func (m *Model) notice(text, since, mend string) []string {
	line := red("! " + status.Printable(text))
	if since != "" {
		line += dim(" since " + since)
	}
	if mend == "" {
		return []string{line}
	}
	command := dim("  mend: ") + status.Printable(mend)
	if ansi.StringWidth(line+command) <= m.width {
		return []string{line + command}
	}
	return []string{line, command}
}

// queues draws each queue as a bar, in the order of flow, on at most half of
// the screen.
func (m *Model) queues() []string {
	const columns = 12 + nameWidth + 1 + 2 + 11 + 11 + 11 + 9
	bar := min(max(m.width-columns, 8), 60)
	lines := []string{dim(fmt.Sprintf("%-11s %-*s %-*s %10s %10s %10s %8s", "QUEUE", nameWidth, "NAME", bar+1, "", "DEPTH", "CAPACITY", "PEAK", "DROPPED"))}
	queues := m.frame.Snapshot.Queues
	most := max(m.height/2-1, 1)
	for i, q := range queues {
		if i == most-1 && len(queues) > most {
			return append(lines, dim(fmt.Sprintf("and %d more; make the window higher, or see weir status", len(queues)-i)))
		}
		capacity := "-"
		if q.Capacity > 0 {
			capacity = status.Amount(q.Capacity, q.Unit)
		}
		drops := fmt.Sprintf("%8d", q.Dropped)
		if q.Dropped > 0 {
			drops = red(drops)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s  %10s %10s %10s %s", bold(cell(string(q.Name), 11)), cell(q.Instance, nameWidth), tank(q, bar),
			status.Amount(q.Depth, q.Unit), capacity, status.Amount(q.Peak, q.Unit), drops))
	}
	return append(lines, "")
}

// tank draws depth and peak of a queue as a bar of width columns. Without a
// capacity the peak is the scale.
func tank(q queue.Queue, width int) string {
	scale := q.Capacity
	if scale <= 0 {
		scale = max(q.Peak, q.Depth, 1)
	}
	at := func(n int64) int { // columns filled, at least one if there is anything
		if n <= 0 {
			return 0
		}
		return min(max(int(float64(n)/float64(scale)*float64(width)+0.5), 1), width)
	}
	full, peak := at(q.Depth), at(q.Peak)
	level := blue
	switch f := q.Fill(); {
	case f >= 1:
		level = red
	case f >= 0.8:
		level = yellow
	}
	var b strings.Builder
	if full > 0 {
		b.WriteString(level(strings.Repeat("█", full)))
	}
	rest := []rune(strings.Repeat("·", width-full))
	if peak > full {
		rest[peak-full-1] = '│'
	}
	b.WriteString(string(rest))
	return b.String()
}

// roomForBuffers is the height from which on the buffers have lines of their own;
// below it, the queues' lines have their fill.
const roomForBuffers = 32

func (m *Model) buffers() []string {
	s := m.frame.Snapshot
	if len(s.Buffers) == 0 || m.height < roomForBuffers {
		return nil
	}
	lines := []string{dim(fmt.Sprintf("%-11s %6s %5s %8s %9s %6s %7s %11s  %-12s %s", "BUFFER", "CHUNKS", "SPARE", "OLDEST", "COMMITS", "FAILED", "DAMAGED", "QUARANTINED", "WRITES", "DISK FREE"))}
	most := max(m.height/6, 2)
	for i, b := range s.Buffers {
		if i == most-1 && len(s.Buffers) > most {
			lines = append(lines, dim(fmt.Sprintf("and %d more; see weir status", len(s.Buffers)-i)))
			break
		}
		damaged, quarantined := 0, 0
		for _, d := range s.Damaged {
			if d.Match == b.Name {
				damaged += d.Chunks
			}
		}
		for _, q := range s.Quarantines {
			if q.Match == b.Name {
				quarantined += q.Items
			}
		}
		oldest := "-"
		if b.Oldest > 0 {
			oldest = status.Age(time.Duration(b.Oldest * float64(time.Second)))
		}
		writes := cell(b.Writes(), 12)
		if !b.Durable || !b.Direct {
			writes = yellow(writes)
		}
		free := "-"
		if b.DiskSize > 0 {
			free = fmt.Sprintf("%s of %s", status.Amount(b.DiskFree, queue.UnitBytes), status.Amount(b.DiskSize, queue.UnitBytes))
		}
		lines = append(lines, fmt.Sprintf("%s %6d %5d %8s %9d %s %s %s  %s %s", bold(cell(b.Name, 11)), b.Chunks, b.Spares, oldest, b.Commits,
			warned(fmt.Sprintf("%6d", b.FailedCommits), b.FailedCommits > 0), warned(fmt.Sprintf("%7d", damaged), damaged > 0),
			warned(fmt.Sprintf("%11d", quarantined), quarantined > 0), writes, free))
	}
	return append(lines, "")
}

// warned is text in the colour of what wants attention, if it does.
func warned(text string, so bool) string {
	if so {
		return yellow(text)
	}
	return text
}

// findings are what the doctor warns of, errors first, on at most an eighth of the
// screen, at its end.
func (m *Model) findings() []string {
	var errors, warnings []string
	for _, f := range m.frame.Snapshot.Findings {
		text := bold(f.Check) + " " + status.Printable(f.Found)
		if f.Subject != "" && f.Subject != f.Check {
			text = bold(f.Check) + " " + status.Printable(f.Subject+": "+f.Found)
		}
		switch f.Severity {
		case doctor.Error:
			errors = append(errors, red("error   ")+text)
		case doctor.Warning:
			warnings = append(warnings, yellow("warning ")+text)
		}
	}
	lines := append(errors, warnings...)
	if len(lines) == 0 || m.height < roomForBuffers {
		return nil
	}
	if most := max(m.height/8, 2); len(lines) > most {
		lines = append(lines[:most-1], dim(fmt.Sprintf("and %d more; see weir doctor", len(lines)-most+1)))
	}
	return append([]string{"", dim("DOCTOR")}, lines...)
}

func (m *Model) outputs() []string {
	s := m.frame.Snapshot
	if len(s.Outputs) == 0 {
		return nil
	}
	lines := []string{dim(fmt.Sprintf("%-11s %-*s %11s %10s %6s %7s  %s", "OUTPUT", matchWidth, "MATCH", "DELIVERED", "WAITING", "CHUNKS", "RETRIES", "NEXT ATTEMPT, LAST ERROR"))}
	most := max(m.height/6, 1)
	for i, o := range s.Outputs {
		if i == most-1 && len(s.Outputs) > most {
			lines = append(lines, dim(fmt.Sprintf("and %d more; see weir status", len(s.Outputs)-i)))
			break
		}
		state := ""
		if o.NextRetry != nil {
			state = yellow(fmt.Sprintf("in %s, %s", status.Age(o.NextRetry.Sub(s.Now).Truncate(time.Second)), status.Printable(o.LastError)))
		}
		lines = append(lines, fmt.Sprintf("%s %s %11d %10s %6d %7d  %s", bold(cell(o.ID, 11)), cell(o.Match, matchWidth), o.DeliveredEvents,
			status.Amount(o.PendingBytes, queue.UnitBytes), o.PendingChunks, o.Retries, state))
	}
	return append(lines, "")
}

// cell is s in exactly width columns.
func cell(s string, width int) string {
	s = ansi.Truncate(status.Printable(s), width, "…")
	return s + strings.Repeat(" ", max(width-ansi.StringWidth(s), 0))
}
