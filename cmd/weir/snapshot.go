package main

import (
	"fmt"
	"os"
	"time"

	"weir/buffer"
	"weir/internal/config"
	"weir/internal/output"
	"weir/internal/queue"
	"weir/internal/status"
)

// snapshot reads every figure of the process and of the kernel once.
func (s *server) snapshot() *status.Snapshot {
	snap := s.figures()
	s.kernel(snap)
	return snap
}

// figures is a snapshot without the kernel's counters.
func (s *server) figures() *status.Snapshot {
	snap := &status.Snapshot{
		Version: version, PID: os.Getpid(), Started: s.started, Now: time.Now(),
		CommitLatency: map[string]status.Histogram{}, TCPStates: map[string]int64{}, Kernel: map[string]uint64{},
		Traffic: status.Traffic{Messages: map[string]uint64{}, Events: map[string]uint64{}, Bytes: map[string]uint64{},
			Heartbeats: map[string]uint64{}, Connections: map[string]uint64{}, Waits: map[string]uint64{}, Refused: map[string]uint64{}, Invalid: map[string]uint64{}},
	}
	snap.Problems = s.health.reasons()
	snap.Findings = s.findings.get()
	for _, src := range s.sources {
		s.addSource(snap, src)
	}
	s.mu.Lock()
	monitor := s.config.Monitor
	s.mu.Unlock()
	// It emits nothing, and checks count on finding it.
	snap.Inputs = append(snap.Inputs, status.Input{ID: monitor.ID, Type: "monitor_agent", Config: monitor.Params})
	for _, m := range s.matches {
		addMatch(snap, m)
	}
	for label, r := range s.routes {
		if n := r.noMatch.Load(); n > 0 {
			name := "(no match)"
			if label != "" {
				name = "(no match in " + label + ")"
			}
			snap.Balance = append(snap.Balance, status.Balance{Output: name, Received: n, Dropped: map[string]uint64{"no_match": n}})
		}
	}
	s.sampler.apply(snap)
	return snap
}

// kernel reads the counters of the namespace.
func (s *server) kernel(snap *status.Snapshot) {
	k, err := s.sampler.kernel.Counters()
	if err != nil {
		snap.Warnings = append(snap.Warnings, err.Error())
		return
	}
	snap.Kernel = map[string]uint64{
		"SyncookiesFailed": k.SyncookiesFailed,
		"ListenOverflows":  k.ListenOverflows, "ListenDrops": k.ListenDrops,
		"TCPReqQFullDoCookies": k.TCPReqQFullDoCookies, "TCPReqQFullDrop": k.TCPReqQFullDrop,
		"SyncookiesSent": k.SyncookiesSent, "SyncookiesRecv": k.SyncookiesRecv,
	}
}

// addSource adds the queues of a source in the order of flow.
func (s *server) addSource(snap *status.Snapshot, src *source) {
	for _, l := range src.listeners {
		s.addListener(snap, src, l)
	}
	st := src.server.Stats()
	id := src.config.ID
	snap.Queues = append(snap.Queues,
		queue.Queue{Name: queue.Connections, Instance: id, Unit: queue.UnitConnections, Depth: int64(st.Open), Capacity: int64(st.Limit),
			Peak: int64(st.Peak), Dropped: st.Refused})
	for _, l := range src.listeners {
		if socket, ok := s.socketQueue(l); ok {
			snap.Queues = append(snap.Queues, socket)
		}
	}
	snap.Queues = append(snap.Queues,
		queue.Queue{Name: queue.Memory, Instance: id, Unit: queue.UnitBytes, Depth: st.MemoryHeld, Capacity: st.MemoryLimit,
			Peak: st.MemoryPeak, Dropped: st.RefusedMessages["memory"], Note: waiting(st.MemoryWaiting)})
	t := &snap.Traffic
	addAll(t.Messages, st.Messages)
	addAll(t.Events, st.Events)
	addAll(t.Bytes, st.Bytes)
	addAll(t.Heartbeats, st.Heartbeats)
	addAll(t.Refused, st.RefusedMessages)
	addAll(t.Invalid, st.InvalidMessages)
	t.InvalidEvents += st.InvalidEvents
	t.NilRecords += st.NilRecords
	t.Acks += st.Acks
	t.Duplicates += st.Duplicates
	t.Connections["accepted"] += st.Accepted - st.Refused
	t.Connections["refused"] += st.Refused
	t.Connections["handshake_failed"] += st.HandshakeFailed
	t.Connections["half_closed"] += st.HalfClosed
	t.Connections["idle"] += st.Idle
	t.Connections["aged"] += st.Aged
	t.Connections["acks_unread"] += st.AcksUnread
	addAll(t.Waits, st.Waits)
	in := status.Input{ID: id, Type: "forward", Config: src.config.Params}
	for mode := range st.Events {
		in.Events += st.Events[mode]
		in.Bytes += st.Bytes[mode]
	}
	snap.Inputs = append(snap.Inputs, in)
	addHistogram(&snap.AckLatency, histogram(st.AckLatency.Bounds, st.AckLatency.Counts, st.AckLatency.Count, st.AckLatency.Sum))
}

func waiting(sessions int) string {
	if sessions == 0 {
		return ""
	}
	return fmt.Sprintf("%d connections wait for memory; raise memory_limit if this lasts", sessions)
}

// addListener adds a listener with its SYN and accept queues.
func (s *server) addListener(snap *status.Snapshot, src *source, l *listener) {
	name := l.name()
	asked, granted := l.Backlog()
	info := status.Listener{Name: name, Asked: asked, Granted: granted}
	note := ""
	if m := l.Mismatch(); m != nil {
		info.LimitedBy, info.Mend = m.Sysctl, m.Mend()
		note = fmt.Sprintf("asked %d, granted %d", asked, granted)
	}
	snap.Listeners = append(snap.Listeners, info)
	q, err := l.Queue()
	if err != nil {
		snap.Problems = append(snap.Problems, err.Error())
		return
	}
	snap.Traffic.Waits["accept"] += q.Moderated
	if q.Starved > 0 && note == "" {
		note = fmt.Sprintf("out of descriptors or memory %d times; raise LimitNOFILE", q.Starved)
	}
	if p, ok := s.sampler.port(l); ok {
		syn := queue.Queue{Name: queue.SYN, Instance: name, Unit: queue.UnitConnections, Depth: int64(p.SynRecv)}
		syn.Capacity, syn.DroppedBy, syn.Note = s.sampler.syn(granted)
		if l.of > 1 { // each socket limits its own part, and the kernel counts them together
			syn.Capacity *= int64(l.of)
			if syn.Note == "" {
				syn.Note = fmt.Sprintf("of %d listeners together", l.of)
			}
		}
		for _, n := range syn.DroppedBy {
			syn.Dropped += n
		}
		snap.Queues = append(snap.Queues, syn)
		states := map[string]int64{"listen": int64(l.of)}
		for state, n := range map[string]int{"syn_recv": p.SynRecv, "established": p.Established, "close_wait": p.CloseWait, "time_wait": p.TimeWait,
			"fin_wait1": p.FinWait1, "fin_wait2": p.FinWait2, "last_ack": p.LastAck, "closing": p.Closing} {
			states[state] = int64(n)
		}
		for state, n := range states {
			snap.TCPStates[state] += n
		}
		snap.Listeners[len(snap.Listeners)-1].TCPStates = states
	}
	if note == "" && l.of > 1 {
		note = fmt.Sprintf("listener %d of %d on the address", l.part+1, l.of)
	}
	snap.Queues = append(snap.Queues, queue.Queue{Name: queue.Accept, Instance: name, Unit: queue.UnitConnections,
		Depth: int64(q.Depth), Capacity: int64(q.Capacity), Peak: int64(q.Peak), PeakMinute: int64(q.PeakMinute), Dropped: q.Drops, Note: note})
}

// socketQueue is the bytes that the kernel holds unread for a listener's
// connections, as sampled.
func (s *server) socketQueue(l *listener) (queue.Queue, bool) {
	p, ok := s.sampler.port(l)
	return queue.Queue{Name: queue.Socket, Instance: l.Addr().String(), Unit: queue.UnitBytes, Depth: p.Unread}, ok
}

// addMatch adds the commit and buffer queues of a match, and its outputs.
func addMatch(snap *status.Snapshot, m *match) {
	st := m.buffer.Stats()
	name := m.config.ID
	note := ""
	if st.Failing != nil {
		note = "storing fails: " + st.Failing.Error()
	}
	snap.Queues = append(snap.Queues,
		queue.Queue{Name: queue.Commit, Instance: name, Unit: queue.UnitEntries, Depth: int64(st.PendingEntries), Peak: int64(st.PeakPendingEntries),
			Dropped: st.FailedEntries, OldestAge: st.PendingAge, Note: note},
		queue.Queue{Name: queue.Buffer, Instance: name, Unit: queue.UnitBytes, Depth: st.Backlog, Capacity: st.Limit, Peak: st.PeakBacklog,
			Dropped: droppedEvents(st.Cursors), DroppedBy: droppedBy(st.Cursors), OldestAge: st.OldestAge, Note: cached(m, st)})
	b := status.Buffer{Name: name, Path: m.config.Buffer.Path, Bytes: st.Backlog, Limit: st.Limit, Overflow: m.config.Buffer.Overflow,
		Chunks: st.Chunks, Spares: st.Spares, Oldest: st.OldestAge.Seconds(), Commits: st.Commits, FailedCommits: st.FailedCommits,
		DroppedChunks: st.DroppedChunks, ChunkIDs: st.IDs, Durable: !m.config.Buffer.NoSync, Direct: st.Direct, ReadAhead: st.ReadAheadBytes}
	for _, c := range st.Cursors {
		b.Recovered = max(b.Recovered, c.Recovered)
	}
	snap.Buffers = append(snap.Buffers, b)
	l := st.Latency
	snap.CommitLatency[name] = histogram(l.Bounds, l.Counts, l.Count, l.Sum)
	snap.Damaged = append(snap.Damaged, status.Damaged{Match: name, Chunks: st.DamagedChunks, Bytes: st.DamagedBytes, Limit: buffer.DamagedLimit, Dropped: st.DroppedDamaged})
	q := m.rejected.Stats()
	snap.Quarantines = append(snap.Quarantines, status.Quarantine{Match: name, Items: q.Items, Bytes: q.Bytes, Limit: q.Limit, Dropped: q.Dropped})
	for i, r := range m.runners {
		addOutput(snap, m.config, m.config.Outputs[i], st, st.Cursors[i], r.Stats())
	}
}

// cached tells that a buffer is slower than it could be.
func cached(m *match, st buffer.Stats) string {
	if st.Direct || m.config.Buffer.NoSync {
		return ""
	}
	return "through the page cache: the file system refuses O_DIRECT"
}

func droppedBy(cursors []buffer.CursorStats) map[string]uint64 {
	all := map[string]uint64{}
	for _, c := range cursors {
		addAll(all, c.Dropped)
	}
	return all
}

func droppedEvents(cursors []buffer.CursorStats) (n uint64) {
	for _, v := range droppedBy(cursors) {
		n += v
	}
	return n
}

func addOutput(snap *status.Snapshot, m *config.Match, c *config.Output, b buffer.Stats, cur buffer.CursorStats, st output.Stats) {
	o := status.Output{
		ID: c.ID, Type: c.Type, Match: m.Pattern, Config: c.Params,
		DeliveredEvents: st.Events, DeliveredBytes: st.Bytes, Batches: st.Batches,
		PendingBytes: cur.Remaining.Bytes, PendingChunks: int64(cur.Remaining.Chunks), Capacity: b.Limit,
		Retries: st.Retries, Step: st.Step, LastError: st.LastError,
		Messages: b.Entries, FlushSeconds: st.FlushTime.Seconds(), SlowFlushes: st.SlowFlushes,
		SecondaryBatches: st.SecondaryBatches, DroppedChunks: b.DroppedChunks,
	}
	if !st.FirstFailure.IsZero() {
		o.FirstFailure = &st.FirstFailure
	}
	note := ""
	if !st.NextRetry.IsZero() {
		o.NextRetry = &st.NextRetry
		note = fmt.Sprintf("retry %d in %v: %s", st.Step, time.Until(st.NextRetry).Round(100*time.Millisecond), st.LastError)
	}
	snap.Outputs = append(snap.Outputs, o)
	snap.Queues = append(snap.Queues, queue.Queue{Name: queue.Output, Instance: c.ID, Unit: queue.UnitBytes,
		Depth: cur.Remaining.Bytes, Dropped: st.GivenUp, Note: note})
	snap.Balance = append(snap.Balance, status.Balance{
		Output: c.ID, Match: m.Pattern, Recovered: cur.Recovered, Received: b.Events,
		Delivered: cur.Delivered, Buffered: cur.Remaining.Events, Dropped: cur.Dropped,
	})
}

func addAll(to, from map[string]uint64) {
	for k, v := range from {
		to[k] += v
	}
}

func histogram(bounds []time.Duration, counts []uint64, count uint64, sum time.Duration) status.Histogram {
	h := status.Histogram{Counts: counts, Count: count, Sum: sum.Seconds()}
	for _, b := range bounds {
		h.Bounds = append(h.Bounds, b.Seconds())
	}
	return h
}

// addHistogram adds one of the same bounds.
func addHistogram(to *status.Histogram, h status.Histogram) {
	if to.Count == 0 && len(to.Bounds) == 0 {
		*to = h
		return
	}
	for i := range to.Counts {
		to.Counts[i] += h.Counts[i]
	}
	to.Count += h.Count
	to.Sum += h.Sum
}
