package buffer

import (
	"maps"
	"time"
)

// Causes under which cursors count dropped events.
const (
	// CauseOverflow: drop_oldest_chunk made room.
	CauseOverflow = "overflow"
	// CauseDamaged: the disk gave back other bytes than were written.
	CauseDamaged = "damaged"
)

// commitBounds are the upper bounds of the commit latency's buckets.
var commitBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
}

// counters are a Buffer's figures, guarded by its mutex.
type counters struct {
	commits, failedCommits uint64
	entries, failedEntries uint64
	events, bytes          uint64
	droppedChunks          uint64
	damagedBytes           int64
	damagedChunks          int
	droppedDamaged         uint64
	duplicates             uint64
	diskReads, readAheads  uint64
	peakBacklog            int64
	peakPending            uint64
	latency                [len(commitBounds) + 1]uint64
	latencySum             time.Duration
	failing                error
	failingSince           time.Time
}

func (c *counters) observe(d time.Duration) {
	i := 0
	for i < len(commitBounds) && d > commitBounds[i] {
		i++
	}
	c.latency[i]++
	c.latencySum += d
}

// Stats is one reading of a Buffer's figures. Counters count since Open.
type Stats struct {
	// Backlog is the undelivered bytes of the slowest cursor, with padding, as
	// total_limit_size counts them; Limit is that parameter.
	Backlog, PeakBacklog, Limit int64
	Chunks                      int
	// Spares is how many delivered files wait to be used again.
	Spares int
	// Direct: commits pass the page cache by (O_DIRECT).
	Direct bool
	// PendingEntries is how many entries Append has taken that are not durable yet,
	// of Pending bytes with padding.
	PendingEntries, PeakPendingEntries uint64
	Pending                            int64
	// PendingAge is how long the oldest of them has waited.
	PendingAge time.Duration
	// OldestAge is how long the oldest undelivered entry has waited, at most:
	// exact after it has gathered alone, else by the commit before it.
	OldestAge time.Duration
	// Commits that succeeded and failed, the entries and events of the former
	// and the entries of the latter.
	Commits, FailedCommits       uint64
	Entries, Events, Bytes       uint64
	FailedEntries, DroppedChunks uint64
	// Duplicates counts entries that were stored already and came again; none of
	// the other figures has them. IDs is how many ids are remembered.
	Duplicates uint64
	IDs        int
	// DiskReads counts batches that were not in memory any more, ReadAheads batches
	// that were read while the one before was delivered. That takes ReadAheadBytes of
	// memory at the moment, at most those of a batch for each cursor that is behind.
	DiskReads, ReadAheads uint64
	ReadAheadBytes        int64
	// DamagedChunks are kept as .damaged, of that many bytes; DroppedDamaged is how
	// many made room for newer ones since Open (DamagedLimit).
	DamagedChunks  int
	DamagedBytes   int64
	DroppedDamaged uint64
	// Latency is the time of write and fdatasync.
	Latency Latency
	// Failing is why storing does not work at the moment, and since when; nil if
	// it works.
	Failing      error
	FailingSince time.Time
	Cursors      []CursorStats
}

// Latency is a histogram: Counts[i] observations took at most Bounds[i].
type Latency struct {
	Bounds []time.Duration
	Counts []uint64 // cumulative
	Count  uint64
	Sum    time.Duration
}

// Remaining is what a cursor has still to deliver.
type Remaining struct {
	Bytes           int64
	Entries, Events uint64
	Chunks          int
}

// CursorStats are one cursor's figures. At every quiet moment
// Recovered + appended events = Delivered + Remaining + Dropped.
type CursorStats struct {
	Name      string
	Remaining Remaining
	// Recovered is the events that remained when the buffer was opened.
	Recovered uint64
	// Delivered counts events of committed batches.
	Delivered uint64
	// Dropped counts events by cause.
	Dropped map[string]uint64
}

// Stats reads the buffer's figures. It is cheap and may be called at any time.
func (b *Buffer) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &b.stats
	s := Stats{
		Backlog: b.backlog, PeakBacklog: c.peakBacklog, Limit: b.opt.TotalLimit, Chunks: len(b.chunks),
		Spares: len(b.spares), Direct: b.direct,
		Pending: b.pending(), PendingEntries: b.pendingEntries(), PeakPendingEntries: c.peakPending,
		Commits: c.commits, FailedCommits: c.failedCommits,
		Entries: c.entries, Events: c.events, Bytes: c.bytes,
		FailedEntries: c.failedEntries, DroppedChunks: c.droppedChunks,
		Duplicates: c.duplicates, IDs: b.ids.count, DiskReads: c.diskReads, ReadAheads: c.readAheads,
		DamagedChunks: c.damagedChunks, DamagedBytes: c.damagedBytes, DroppedDamaged: c.droppedDamaged,
		Failing: c.failing, FailingSince: c.failingSince,
	}
	for _, g := range []*group{b.next, b.current} {
		if g != nil && g.entries > 0 {
			s.PendingAge = max(s.PendingAge, time.Since(g.oldest))
		}
	}
	l := &s.Latency
	for i, bound := range commitBounds {
		l.Count += c.latency[i]
		l.Bounds = append(l.Bounds, bound)
		l.Counts = append(l.Counts, l.Count)
	}
	l.Count += c.latency[len(commitBounds)]
	l.Sum = c.latencySum
	for _, cur := range b.cursors {
		r := b.remaining(cur)
		s.ReadAheadBytes += cur.aheadBytes
		if !cur.oldest.IsZero() {
			s.OldestAge = max(s.OldestAge, time.Since(cur.oldest))
		}
		s.Cursors = append(s.Cursors, CursorStats{
			Name: cur.name, Remaining: r, Recovered: cur.recovered, Delivered: cur.delivered, Dropped: maps.Clone(cur.dropped),
		})
	}
	return s
}

// remaining adds up what the cursor has not committed. b.mu is held.
func (b *Buffer) remaining(cur *Cursor) (r Remaining) {
	i := b.index(cur.pos.seq)
	if i == len(b.chunks) {
		return r
	}
	first := b.chunks[i]
	passed := first.before
	r.Chunks = len(b.chunks) - i
	if first.seq == cur.pos.seq {
		passed = passed.plus(tally{cur.pos.off - BlockSize, min(cur.pos.entries, first.entries), min(cur.pos.events, first.events)})
		if cur.pos.off == first.end {
			r.Chunks--
		}
	}
	r.Bytes = b.total.bytes - passed.bytes
	r.Entries = b.total.entries - passed.entries
	r.Events = b.total.events - passed.events
	return r
}
