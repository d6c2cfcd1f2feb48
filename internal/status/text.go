package status

import (
	"bufio"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"weir/internal/doctor"
	"weir/internal/queue"
)

// WriteText writes s as the table that `weir status` shows: listeners, queues
// in the order of flow, traffic, and the sum of promise P5 for each output.
func WriteText(w io.Writer, s *Snapshot) error {
	b := bufio.NewWriter(w)
	state := "ready"
	if !s.Ready() {
		state = "NOT READY"
	}
	fmt.Fprintf(b, "weir %s, pid %d, up %s, %s\n", s.Version, s.PID, age(s.Now.Sub(s.Started)), state)
	for _, p := range s.Problems {
		fmt.Fprintf(b, "  problem: %s\n", p)
	}
	for _, l := range s.Listeners {
		fmt.Fprintf(b, "listening on %s, backlog %d asked, %d granted", l.Name, l.Asked, l.Granted)
		if l.LimitedBy != "" {
			fmt.Fprintf(b, ", limited by %s; to mend it: %s", l.LimitedBy, l.Mend)
		}
		fmt.Fprintln(b)
	}
	for _, a := range s.Alerts {
		if a.Until == nil {
			fmt.Fprintf(b, "  alert: %s, %s: %s\n", a.Name, printable(a.Subject), printable(a.Message))
			if a.Mend != "" {
				fmt.Fprintf(b, "    to mend it: %s\n", printable(a.Mend))
			}
		}
	}
	for _, p := range s.Warnings {
		fmt.Fprintf(b, "  warning: %s\n", p)
	}
	for _, f := range s.Findings {
		if f.Severity == doctor.Note {
			continue // weir doctor tells of these
		}
		fmt.Fprintf(b, "  %s: %s %s: %s", f.Severity, f.Check, printable(f.Subject), printable(f.Found))
		if f.Mend != "" {
			fmt.Fprintf(b, "; to mend it: %s", printable(f.Mend))
		}
		fmt.Fprintln(b)
	}
	fmt.Fprintln(b)

	t := newTable(b)
	fmt.Fprintln(t, "QUEUE\tNAME\tDEPTH\tCAPACITY\tFILL\tMINUTE\tPEAK\tDROPPED\tOLDEST\t")
	for _, q := range s.Queues {
		capacity, fill := "-", "-"
		if q.Capacity > 0 {
			capacity = amount(q.Capacity, q.Unit)
			fill = fmt.Sprintf("%.0f%%", 100*q.Fill())
		}
		oldest := "-"
		if q.OldestAge > 0 {
			oldest = age(q.OldestAge)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", q.Name, printable(q.Instance), amount(q.Depth, q.Unit),
			capacity, fill, amount(q.PeakMinute, q.Unit), amount(q.Peak, q.Unit), dropped(q), oldest, printable(q.Note))
	}
	t.flush()

	tr := s.Traffic
	fmt.Fprintf(b, "\nreceived: %d events in %d messages, %s; %d acks; %d sent again; heartbeats: %s\n",
		total(tr.Events), total(tr.Messages), amount(int64(total(tr.Bytes)), queue.UnitBytes), tr.Acks, tr.Duplicates, counts(tr.Heartbeats))
	fmt.Fprintf(b, "connections: %s; refused messages: %s\n", counts(tr.Connections), counts(tr.Refused))
	writeQuarantines(b, s)

	t = newTable(b)
	fmt.Fprintln(t, "OUTPUT\tMATCH\tRECOVERED +\tRECEIVED =\tDELIVERED +\tBUFFERED +\tDROPPED\t")
	for _, x := range s.Balance {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t", printable(x.Output), printable(x.Match), x.Recovered, x.Received, x.Delivered, x.Buffered, counts(x.Dropped))
		if !x.Holds() {
			fmt.Fprint(t, "(messages on their way)")
		}
		fmt.Fprintln(t)
	}
	t.flush()
	return b.Flush()
}

// writeQuarantines says what could not be taken, if there is any.
func writeQuarantines(b *bufio.Writer, s *Snapshot) {
	if len(s.Traffic.Invalid) > 0 {
		fmt.Fprintf(b, "not valid: %s messages, %d events of them set aside\n", counts(s.Traffic.Invalid), s.Traffic.InvalidEvents)
	}
	for _, q := range s.Quarantines {
		if q.Items > 0 || q.Dropped > 0 {
			fmt.Fprintf(b, "quarantine of %s: %d items, %s of %s, %d dropped; see weir buffer rejected\n", printable(q.Match), q.Items,
				amount(q.Bytes, queue.UnitBytes), amount(q.Limit, queue.UnitBytes), q.Dropped)
		}
	}
	for _, d := range s.Damaged {
		if d.Chunks > 0 || d.Dropped > 0 {
			fmt.Fprintf(b, "damaged chunks of %s: %d kept, %s of %s, %d dropped; see weir buffer verify\n", printable(d.Match), d.Chunks,
				amount(d.Bytes, queue.UnitBytes), amount(d.Limit, queue.UnitBytes), d.Dropped)
		}
	}
	fmt.Fprintln(b)
}

// table aligns columns and leaves no blanks at the ends of lines.
type table struct {
	*tabwriter.Writer
	text strings.Builder
	out  *bufio.Writer
}

func newTable(w *bufio.Writer) *table {
	t := &table{out: w}
	t.Writer = tabwriter.NewWriter(&t.text, 0, 0, 2, ' ', 0)
	return t
}

// flush writes the table out; an error is kept by out, a bufio.Writer.
func (t *table) flush() {
	t.Flush() // to memory: cannot fail
	for line := range strings.Lines(t.text.String()) {
		fmt.Fprintln(t.out, strings.TrimRight(line, " \n"))
	}
}

// dropped is the count of q with its causes where they are known.
func dropped(q queue.Queue) string {
	if len(q.DroppedBy) == 0 || q.Dropped == 0 {
		return strconv.FormatUint(q.Dropped, 10)
	}
	return fmt.Sprintf("%d (%s)", q.Dropped, counts(q.DroppedBy))
}

// counts lists the entries of m that are not zero, by name.
func counts(m map[string]uint64) string {
	var parts []string
	for k, v := range m {
		if v != 0 {
			parts = append(parts, fmt.Sprintf("%s %d", printable(k), v))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	sort.Strings(parts)
	return strings.Join(parts, ", ")
}

func total(m map[string]uint64) uint64 {
	var n uint64
	for _, v := range m {
		n += v
	}
	return n
}

// amount writes n with a binary prefix where it counts bytes.
func amount(n int64, u queue.Unit) string {
	if u != queue.UnitBytes || n < 1024 {
		if u == queue.UnitBytes {
			return fmt.Sprintf("%d B", n)
		}
		return strconv.FormatInt(n, 10)
	}
	v, prefix := float64(n), ""
	for _, p := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if v < 1024 {
			break
		}
		v, prefix = v/1024, p
	}
	return fmt.Sprintf("%.1f %sB", v, prefix)
}

// age rounds d to what a person reads at a glance.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// printable keeps what came from outside (tags, addresses, errors) from
// steering the terminal.
func printable(s string) string {
	clean := true
	for _, r := range s {
		if !strconv.IsPrint(r) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	q := strconv.QuoteToGraphic(s)
	return q[1 : len(q)-1]
}
