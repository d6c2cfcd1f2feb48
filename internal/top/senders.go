package top

import (
	"cmp"
	"fmt"
	"slices"

	"weir/internal/queue"
	"weir/internal/status"
)

// order is a way to sort senders, and the key that asks for it.
type order struct {
	key, name string
	less      func(a, b *status.Sender) int
}

var orders = []order{
	{"h", "beats", func(a, b *status.Sender) int { return cmp.Compare(b.HeartbeatsPerSecond, a.HeartbeatsPerSecond) }},
	{"c", "conns", func(a, b *status.Sender) int { return cmp.Compare(b.ConnectionsPerSecond, a.ConnectionsPerSecond) }},
	{"e", "events", func(a, b *status.Sender) int { return cmp.Compare(b.Events, a.Events) }},
	{"b", "bytes", func(a, b *status.Sender) int { return cmp.Compare(b.Bytes, a.Bytes) }},
	{"r", "resends", func(a, b *status.Sender) int { return cmp.Compare(b.Resends, a.Resends) }},
	{"a", "address", func(*status.Sender, *status.Sender) int { return 0 }},
}

// sorted is the senders in that order, by address where they are equal.
func (o order) sorted(senders []status.Sender) []status.Sender {
	s := slices.Clone(senders)
	slices.SortFunc(s, func(a, b status.Sender) int {
		return cmp.Or(o.less(&a, &b), cmp.Compare(a.Address, b.Address))
	})
	return s
}

// senders draws as many as fit into rows lines, of those that the frame lists:
// the ones with most heartbeats.
func (m *Model) senders(rows int) []string {
	s := m.frame.Snapshot
	if rows < 2 || len(s.Senders) == 0 {
		return nil
	}
	head := fmt.Sprintf("%-*s %5s %7s %7s %11s %10s %7s", senderWidth, "SENDER by "+m.order.name, "OPEN", "CONN/S", "BEAT/S", "EVENTS", "BYTES", "RESENDS")
	lines := []string{dim(head)}
	for _, x := range m.order.sorted(s.Senders) {
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
	if more := s.SendersKnown - len(lines) + 1; more > 0 {
		lines[0] = dim(head + fmt.Sprintf("  and %d more", more))
	}
	return lines
}
