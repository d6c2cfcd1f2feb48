package status

import (
	"bufio"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"

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
	fmt.Fprintf(b, "weir %s, pid %d, up %s, %s\n", s.Version, s.PID, Age(s.Now.Sub(s.Started)), state)
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
			fmt.Fprintf(b, "  alert: %s, %s: %s\n", a.Name, Printable(a.Subject), Printable(a.Message))
			if a.Mend != "" {
				fmt.Fprintf(b, "    to mend it: %s\n", Printable(a.Mend))
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
		fmt.Fprintf(b, "  %s: %s %s: %s", f.Severity, f.Check, Printable(f.Subject), Printable(f.Found))
		if f.Mend != "" {
			fmt.Fprintf(b, "; to mend it: %s", Printable(f.Mend))
		}
		fmt.Fprintln(b)
	}
	fmt.Fprintln(b)

	t := newTable(b)
	fmt.Fprintln(t, "QUEUE\tNAME\tDEPTH\tCAPACITY\tFILL\tMINUTE\tPEAK\tDROPPED\tOLDEST\t")
	for _, q := range s.Queues {
		capacity, fill := "-", "-"
		if q.Capacity > 0 {
			capacity = Amount(q.Capacity, q.Unit)
			fill = fmt.Sprintf("%.0f%%", 100*q.Fill())
		}
		oldest := "-"
		if q.OldestAge > 0 {
			oldest = Age(q.OldestAge)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", q.Name, Printable(q.Instance), Amount(q.Depth, q.Unit),
			capacity, fill, Amount(q.PeakMinute, q.Unit), Amount(q.Peak, q.Unit), dropped(q), oldest, Printable(q.Note))
	}
	t.flush()

	tr := s.Traffic
	fmt.Fprintf(b, "\nreceived: %d events in %d messages, %s; %d acks; %d sent again; heartbeats: %s\n",
		total(tr.Events), total(tr.Messages), Amount(int64(total(tr.Bytes)), queue.UnitBytes), tr.Acks, tr.Duplicates, counts(tr.Heartbeats))
	fmt.Fprintf(b, "connections: %s; refused messages: %s\n", counts(tr.Connections), counts(tr.Refused))
	writeQuarantines(b, s)

	t = newTable(b)
	fmt.Fprintln(t, "BUFFER\tCHUNKS\tSPARE\tCOMMITS\tFAILED\tRECOVERED\tWRITES\tDISK FREE\tPATH\t")
	for _, x := range s.Buffers {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t\n", Printable(x.Name), x.Chunks, x.Spares, x.Commits, x.FailedCommits, x.Recovered,
			x.Writes(), diskFree(x), Printable(x.Path))
	}
	t.flush()
	fmt.Fprintln(b)

	t = newTable(b)
	fmt.Fprintln(t, "OUTPUT\tMATCH\tRECOVERED +\tRECEIVED =\tDELIVERED +\tBUFFERED +\tDROPPED\t")
	for _, x := range s.Balance {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t", Printable(x.Output), Printable(x.Match), x.Recovered, x.Received, x.Delivered, x.Buffered, counts(x.Dropped))
		if !x.Holds() {
			fmt.Fprint(t, "(messages on their way)")
		}
		fmt.Fprintln(t)
	}
	t.flush()
	return b.Flush()
}

// diskFree is the room of a buffer's file system.
func diskFree(b Buffer) string {
	if b.DiskSize == 0 {
		return "-"
	}
	return fmt.Sprintf("%s of %s", Amount(b.DiskFree, queue.UnitBytes), Amount(b.DiskSize, queue.UnitBytes))
}

// writeQuarantines says what could not be taken, if there is any.
func writeQuarantines(b *bufio.Writer, s *Snapshot) {
	if len(s.Traffic.Invalid) > 0 {
		fmt.Fprintf(b, "not valid: %s messages, %d events of them set aside\n", counts(s.Traffic.Invalid), s.Traffic.InvalidEvents)
	}
	for _, q := range s.Quarantines {
		if q.Items > 0 || q.Dropped > 0 {
			fmt.Fprintf(b, "quarantine of %s: %d items, %s of %s, %d dropped; see weir buffer rejected\n", Printable(q.Match), q.Items,
				Amount(q.Bytes, queue.UnitBytes), Amount(q.Limit, queue.UnitBytes), q.Dropped)
		}
	}
	for _, d := range s.Damaged {
		if d.Chunks > 0 || d.Dropped > 0 {
			fmt.Fprintf(b, "damaged chunks of %s: %d kept, %s of %s, %d dropped; see weir buffer verify\n", Printable(d.Match), d.Chunks,
				Amount(d.Bytes, queue.UnitBytes), Amount(d.Limit, queue.UnitBytes), d.Dropped)
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
			parts = append(parts, fmt.Sprintf("%s %d", Printable(k), v))
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
