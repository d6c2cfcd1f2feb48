package top

import (
	"cmp"
	"fmt"
	"slices"

	tea "charm.land/bubbletea/v2"

	"weir/internal/queue"
	"weir/internal/status"
)

// order is a way to sort senders, and the key that asks for it.
type order struct {
	key, name string
	by        string // its name in /api/senders.json
	less      func(a, b *status.Sender) int
}

var orders = []order{
	{"h", "beats", "heartbeats_per_second", func(a, b *status.Sender) int { return cmp.Compare(b.HeartbeatsPerSecond, a.HeartbeatsPerSecond) }},
	{"c", "conns", "connections_per_second", func(a, b *status.Sender) int { return cmp.Compare(b.ConnectionsPerSecond, a.ConnectionsPerSecond) }},
	{"e", "events", "events", func(a, b *status.Sender) int { return cmp.Compare(b.Events, a.Events) }},
	{"b", "bytes", "bytes", func(a, b *status.Sender) int { return cmp.Compare(b.Bytes, a.Bytes) }},
	{"r", "resends", "resends", func(a, b *status.Sender) int { return cmp.Compare(b.Resends, a.Resends) }},
	{"a", "address", "address", func(*status.Sender, *status.Sender) int { return 0 }},
}

// Ranker asks weir for the first of all senders, by one of their figures
// (/api/senders.json). A frame lists only some of them.
type Ranker func(by string, limit int) (*status.SenderList, error)

// rankedMsg is a Ranker's answer.
type rankedMsg struct {
	by   string
	list *status.SenderList
	err  error
}

// askSenders asks for the senders in the present order, if the frame does not have
// them all; one request is under way at most.
func (m *Model) askSenders() tea.Cmd {
	if m.asking || m.rank == nil || m.frame == nil || m.frame.Snapshot.SendersKnown <= len(m.frame.Snapshot.Senders) {
		return nil
	}
	m.asking = true
	rank, by, limit := m.rank, m.order.by, min(max(m.height, 1), status.MaxSenderLimit)
	return func() tea.Msg {
		list, err := rank(by, limit)
		return rankedMsg{by, list, err}
	}
}

// listed is the senders to draw, sorted, and a word on what they are the first of if
// that is not all of them.
func (m *Model) listed() (senders []status.Sender, of string) {
	s := m.frame.Snapshot
	if s.SendersKnown <= len(s.Senders) {
		return m.order.sorted(s.Senders), ""
	}
	if m.ranked.err == nil && m.ranked.list != nil && m.ranked.by == m.order.by {
		return m.ranked.list.Senders, ""
	}
	return m.order.sorted(s.Senders), fmt.Sprintf("  of the %d with most heartbeats", len(s.Senders))
}

// sorted is the senders in that order, by address where they are equal.
func (o order) sorted(senders []status.Sender) []status.Sender {
	s := slices.Clone(senders)
	slices.SortFunc(s, func(a, b status.Sender) int {
		return cmp.Or(o.less(&a, &b), cmp.Compare(a.Address, b.Address))
	})
	return s
}

// senders draws as many as fit into rows lines.
func (m *Model) senders(rows int) []string {
	senders, of := m.listed()
	if rows < 2 || len(senders) == 0 {
		return nil
	}
	head := fmt.Sprintf("%-*s %5s %7s %7s %11s %10s %7s", senderWidth, "SENDER by "+m.order.name, "OPEN", "CONN/S", "BEAT/S", "EVENTS", "BYTES", "RESENDS")
	lines := []string{""}
	for _, x := range senders {
		if len(lines) == rows {
			break
		}
		resends := fmt.Sprintf("%7d", x.Resends)
		if x.Resends > 0 {
			resends = yellow(resends)
		}
		lines = append(lines, fmt.Sprintf("%s %5d %7.1f %7.1f %11d %10s %s", cell(x.Address, senderWidth), x.Open, x.ConnectionsPerSecond, x.HeartbeatsPerSecond,
			x.Events, status.Amount(int64(x.Bytes), queue.UnitBytes), resends))
	}
	if more := m.frame.Snapshot.SendersKnown - len(lines) + 1; of == "" && more > 0 {
		of = fmt.Sprintf("  and %d more", more)
	}
	lines[0] = dim(head + of)
	return lines
}
