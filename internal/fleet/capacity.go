package fleet

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// Capacity is what one server of so many cores takes of a kind of fleet.
type Capacity struct {
	Cores int `json:"cores"`
	// Senders is the most for which Load is at most 1, that is with Headroom left.
	Senders     int     `json:"senders"`
	Connections float64 `json:"connections_per_second"`
	Messages    float64 `json:"messages_per_second"`
	Bytes       float64 `json:"bytes_per_second"`
	// Bound is what comes to its end first: "cpu", "accept loop" or "disk".
	Bound string `json:"bound"`
}

// Grow computes, for servers like s with each number of cores, how many senders
// like those of f they take; f.Senders is not used.
func Grow(f Fleet, s Server, c Costs, cores []int) ([]Capacity, error) {
	f.Senders, f.Stall = 1, 0
	if err := f.Validate(); err != nil {
		return nil, err
	}
	load := func(senders int, s Server) *Result {
		r := &Result{Fleet: f, Server: s}
		r.Fleet.Senders = senders
		r.rates(c)
		return r
	}
	var all []Capacity
	for _, n := range cores {
		s.Cores = float64(n)
		low, high := 0, 1 // load(low) ≤ 1 < load(high)
		for high < maxSenders && load(high, s).Load <= 1 {
			low, high = high, 2*high
		}
		for high-low > 1 {
			if mid := low + (high-low)/2; load(mid, s).Load <= 1 {
				low = mid
			} else {
				high = mid
			}
		}
		r := load(max(low, 1), s) // also where one is too many: what is it that ends?
		if low == 0 {
			r.Connections, r.Messages, r.Bytes = 0, 0, 0
		}
		all = append(all, Capacity{Cores: n, Senders: low, Connections: r.Connections, Messages: r.Messages, Bytes: r.Bytes, Bound: r.Bound})
	}
	return all, nil
}

// WriteCapacity writes the rows of Grow as a Markdown table.
func WriteCapacity(w io.Writer, rows []Capacity) error {
	fmt.Fprintln(w, "| cores | senders | connections/s | messages/s | MB/s | what comes to its end |")
	fmt.Fprintln(w, "|---|---|---|---|---|---|")
	for _, c := range rows {
		if _, err := fmt.Fprintf(w, "| %d | %d | %.0f | %.0f | %.1f | %s |\n", c.Cores, c.Senders, c.Connections, c.Messages, c.Bytes/1e6, c.Bound); err != nil {
			return err
		}
	}
	return nil
}

// WriteText writes what the fleet needs as a table for people.
func (r *Result) WriteText(w io.Writer) error {
	f := r.Fleet
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "  "+name+"\t"+format+"\n", args...) }
	heartbeat := string(f.Heartbeat)
	if f.Heartbeat != None {
		heartbeat += " every " + f.HeartbeatEvery.String()
	}
	kept := "a connection for each flush"
	if f.Keepalive {
		kept = "connections kept"
	}
	fmt.Fprintf(t, "%d senders, heartbeat %s, flush of %d bytes every %v, %s, stall of %v:\n", f.Senders, heartbeat, f.FlushBytes, f.FlushEvery, kept, f.Stall)
	row("connections", "%.0f/s new, up to %d open, %d descriptors", r.Connections, r.Open, r.Descriptors)
	row("messages", "%.0f/s, %.1f MB/s", r.Messages, r.Bytes/1e6)
	row("accept queue", "peak %d steady, %d when stalled for %v, %d when all come back within %v", r.Steady.Peak, r.Stalled.Peak, f.Stall, r.Storm.Peak, reconnectWithin)
	row("backlog", "%d", r.Backlog)
	if r.StalledHere != nil {
		row("with backlog "+fmt.Sprint(r.Server.Backlog), "stall: %s; all come back: %s", r.StalledHere, r.StormHere)
	}
	row("ports", "%d on each sender; behind a balancer %d from %d of its addresses (%d ports each, %v in TIME_WAIT)", r.SenderPorts, r.BalancerPorts, r.BalancerAddresses, EphemeralPorts, TimeWait)
	row("conntrack", "%d entries, where it is loaded", r.Conntrack)
	row("CPU", "%.2f cores; the accept loop is busy %.0f %% of its time", r.Cores, 100*r.AcceptLoad)
	row("disk", "%.1f MB/s, %.0f fdatasync/s; %.1f MB wait in memory in a stall", r.DiskBytes/1e6, r.Commits, float64(r.StallMemory)/1e6)
	row("servers", "%d (%.0f %% of one that keeps %.0f %% free; its %s comes to its end first)", r.Servers, 100*r.Load, 100-100*Headroom, r.Bound)
	return t.Flush()
}

// String tells of drops in one phrase.
func (q *Queue) String() string {
	if q.Drops == 0 {
		return fmt.Sprintf("no drop, slowest accept after %v", q.Slowest.Round(time.Millisecond))
	}
	text := fmt.Sprintf("%d SYNs dropped, %d connections delayed, slowest accept after %v", q.Drops, q.Delayed, q.Slowest.Round(time.Millisecond))
	if q.GaveUp > 0 {
		text += fmt.Sprintf(", %d gave up", q.GaveUp)
	}
	return text
}
